"""Facets of a job for OpenLineage, where ``apache-airflow-providers-openlineage`` is installed.

Its extractor asks the operator, which asks here; until then nothing of it is imported. Datasets are not among them:
it takes those from the operator's ``inlets`` and ``outlets``.
"""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import Job, Task, TaskStatus, printable

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseOperator

log = logging.getLogger(__name__)

PARENT_ID, ROOT_PARENT_ID = "OPENLINEAGE_PARENT_ID", "OPENLINEAGE_ROOT_PARENT_ID"
JOB_FACET = "airExecutor_job"  # the key of the facet, named as OpenLineage wants it: <project>_<name>

_MAX_COMMANDS = 20_000  # characters
_MAX_TASKS = 200  # emitted one by one; of more the failed ones first


def parent_environment(ti: Any) -> dict[str, str]:
    """The variables that name the Airflow task to which the OpenLineage runs of programs belong.

    Each is ``<namespace>/<job>/<run id>``, as dbt-ol and other clients read it: one for the task, one for the DAG run.

    :param ti: the task instance.
    :return: nothing, where the provider is not installed.
    """
    try:
        from airflow.providers.openlineage.plugins import macros
    except ImportError as error:
        log.warning("the job's tasks do not get their OpenLineage parent: %s", error)
        return {}
    return {PARENT_ID: macros.lineage_parent_id(ti), ROOT_PARENT_ID: macros.lineage_root_parent_id(ti)}


def with_environment(tasks: Iterable[Task], environment: Mapping[str, str]) -> tuple[Task, ...]:
    """The tasks with variables added to their own, which win."""
    if not environment:
        return tuple(tasks)
    return tuple(task.evolve(env={**environment, **(task.env or {})}) for task in tasks)


def of_tasks(operator: BaseOperator, tasks: Sequence[Task]) -> OperatorLineage[Any, Any]:
    """The facets before the job has begun: the commands as the DAG has them, if they may be sent."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.facet_v2 import source_code_job

    if not tasks or not _may_emit_commands(operator):
        return OperatorLineage()
    facet = source_code_job.SourceCodeJobFacet(language="bash", sourceCode=_commands(tasks))
    return OperatorLineage(job_facets={"sourceCode": facet})


def of_job(jobs: Jobs, job_name: str) -> OperatorLineage[Any, Any]:
    """The facets when the Airflow task has ended: the states of the job and its tasks.

    Commands are not among them, since they may contain data of other systems, the rows of a query for instance.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    try:
        job, tasks = jobs.get_job(job_name), jobs.get_tasks(job_name)
    except AirExecutorError:  # it was never submitted, or it is gone
        return OperatorLineage()
    return OperatorLineage(run_facets={JOB_FACET: _job_facet(job, tasks)})


def _may_emit_commands(operator: BaseOperator) -> bool:
    """Whether commands, which may hold secrets, are emitted, by the setting for Airflow's Bash and Python operators."""
    from airflow.providers.openlineage import conf

    try:
        from airflow.providers.openlineage.utils.emission_policy import resolve_task_emission_policy
    except ImportError:  # an older version, with one setting for all
        allowed: bool = conf.is_source_enabled()
    else:
        policy = resolve_task_emission_policy(operator=operator, dag_id=operator.dag_id, task_id=operator.task_id)
        allowed = policy.include_source_code
    return allowed


def _commands(tasks: Sequence[Task]) -> str:
    """The commands as a shell would read them, without the tasks' environments."""
    lines, length = [], 0
    for number, task in enumerate(tasks):
        line = f"# {task.id}\n{shlex.join((task.command, *task.args))}"
        length += len(line)
        if length > _MAX_COMMANDS:
            lines.append(f"# and {len(tasks) - number} more tasks")
            break
        lines.append(line)
    return "\n".join(lines)


def _job_facet(job: Job, tasks: Sequence[Task]) -> Any:
    failed_first = sorted(tasks, key=lambda task: task.status is not TaskStatus.FAILED)
    return _facet_class()(
        id=printable(job.id),
        name=printable(job.name),
        state=job.state.value,
        reason=job.reason.value if job.reason else None,
        error=job.error and printable(job.error),
        attempt=job.attempt,
        taskCounts=dict(Counter(task.status.value for task in tasks)),
        tasks=[_describe(task) for task in failed_first[:_MAX_TASKS]],
    )


def _describe(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "status": task.status.value,
        "reason": task.reason.value if task.reason else None,
        "exitCode": task.exit_code,
        "attempt": task.attempt,
        "seconds": task.seconds,
    }


@cache
def _facet_class() -> type[Any]:
    import attrs
    from openlineage.client.facet_v2 import RunFacet

    @attrs.define
    class AirExecutorJobRunFacet(RunFacet):
        """How a job stands, and its tasks."""

        id: str
        name: str
        state: str
        reason: str | None
        error: str | None
        attempt: int
        taskCounts: dict[str, int]  # noqa: N815 - as fields are named there
        tasks: list[dict[str, Any]]

    return AirExecutorJobRunFacet
