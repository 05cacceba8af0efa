"""What users ask of jobs, in Airflow's audit log."""

from __future__ import annotations

import json
from typing import Any

from airflow.models.log import Log
from airflow.utils.session import create_session

from airflow_provider_air_executor.plugin.access import FoundJob


def record(event: str, *found: FoundJob, **more: Any) -> None:
    """Write requests into Airflow's audit log, before they are carried out: none is carried out without.

    :param event: what is asked for.
    :param found: the jobs, each of which gets an entry.
    :param more: what else is said of the request.
    """
    entries = [_entry(event, one, more) for one in found]
    with create_session() as session:
        session.add_all(entries)


def _entry(event: str, found: FoundJob, more: dict[str, Any]) -> Log:
    user, owner = found.rights.user, found.job.submitted_by
    fields = {} if owner is None else owner.model_dump(include={"dag_id", "run_id", "task_id", "map_index"})
    return Log(
        event=f"air_executor.{event}_job",
        owner=str(user.get_id()),
        owner_display_name=user.get_name(),
        extra=json.dumps({"job": found.job.name, "conn_id": found.rights.conn_id, **more}),
        **{key: value for key, value in fields.items() if value != ""},
    )
