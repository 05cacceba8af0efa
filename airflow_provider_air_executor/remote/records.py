"""What a client and a server send each other, as the records that they are here and there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from airflow_provider_air_executor.exceptions import InvalidJobError, ProtocolError
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, OldestWaiting, Slots, share_of
from airflow_provider_air_executor.jobs.models import TASK_LIST, Job, SubmittedBy, Task, Timestamp
from airflow_provider_air_executor.jobs.spec import FIELDS, JobSpec, fields_of
from airflow_provider_air_executor.jobs.validation import validate

T = TypeVar("T")

_JOB = TypeAdapter(Job)
_TIME: TypeAdapter[Any] = TypeAdapter(Timestamp)


# -- what is sent ------------------------------------------------------------------------------------------


def dumped_tasks(tasks: Any) -> list[Any]:
    """Tasks as they are sent. What of them is not valid is mostly found by the server, which knows its engines.

    :raises InvalidJobError: naming a field that no server would take.
    """
    if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable):
        raise InvalidJobError(f"tasks: must be a list of tasks, not {type(tasks).__name__}")
    given = [item.model_dump(exclude_unset=True) if isinstance(item, Task) else item for item in tasks]
    records: tuple[Task, ...] = validate(TASK_LIST, given, "tasks")
    return [_dumped(task, f"tasks[{index}]") for index, task in enumerate(records)]


def dumped_spec(spec: JobSpec) -> dict[str, Any]:
    """The fields of a new job as they are sent.

    :raises InvalidJobError: naming a field that is not valid.
    :raises TypeError: if there is no such field.
    """
    given = fields_of(spec)
    job: Job = validate(_JOB, {"id": "", "name": "", **given}, "")
    return {name: value for name, value in _dumped(job, "").items() if name in FIELDS and name in given}


def dumped_owner(owner: SubmittedBy | None) -> dict[str, Any] | None:
    """The Airflow task that asks, as it is sent."""
    return None if owner is None else owner.model_dump(mode="json", exclude_unset=True)


def identity_of(job: Job) -> dict[str, Any]:
    """What tells the end of a job from all other ones."""
    return job.model_dump(mode="json", include={"name", "id", "attempt", "updated_at"})


def _dumped(record: Task | Job, where: str) -> dict[str, Any]:
    try:
        return record.model_dump(mode="json", exclude_unset=True)
    except PydanticSerializationError as error:
        raise InvalidJobError(f"{where}: {error}") from None


# -- what is received --------------------------------------------------------------------------------------


def parsed(kind: type[T], content: Any) -> T:
    """A record of what was received, which is JSON that has been read.

    :raises ProtocolError: if it is none.
    """
    try:
        found: T = _adapter(cast("Any", kind)).validate_python(content)
    except ValidationError as error:
        raise ProtocolError(f"the server has sent no {kind.__name__}: {error.errors()[0]['msg']}") from None
    return found


def parsed_tuple(kind: type[T], content: Any) -> T:
    """A record that is a named tuple; what a later version says besides is passed over.

    :raises ProtocolError: if it is none.
    """
    known = getattr(kind, "_fields", ())
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if name in known}
    return parsed(kind, content)


@lru_cache(maxsize=32)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parsed_json(text: str | bytes) -> Any:
    """A value of JSON.

    :raises ProtocolError: if it is none.
    """
    try:
        return from_json(text)
    except ValueError as error:
        raise ProtocolError(f"the server has sent no JSON: {error}") from None


def manager_of(content: Mapping[str, Any] | None) -> ManagerInfo | None:
    """The manager as it describes itself; what a later version says besides is passed over."""
    if content is None:
        return None
    known = {field.name for field in dataclasses.fields(ManagerInfo)}
    found: dict[str, Any] = {name: value for name, value in content.items() if name in known}
    try:
        found["slots"] = {name: Slots(**slots) for name, slots in found.get("slots", {}).items()}
        found["capacity"] = {name: share_of(share) for name, share in found.get("capacity", {}).items()}
        found["started_at"] = _TIME.validate_python(found["started_at"]) if found.get("started_at") else None
        if oldest := found.get("oldest_waiting"):
            found["oldest_waiting"] = OldestWaiting(oldest["job"], _TIME.validate_python(oldest["since"]))
        return ManagerInfo(**found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the server has sent no manager: {error!r}") from None


def dumped(content: Any) -> bytes:
    """A value as JSON, which is the same for each try of a request.

    :raises InvalidJobError: if it cannot be sent: a lone surrogate in a text, for instance.
    """
    try:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    except (UnicodeEncodeError, ValueError) as error:
        raise InvalidJobError(f"this cannot be sent as JSON: {error}") from None
