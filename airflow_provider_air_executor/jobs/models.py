"""The records of the job filesystem: jobs, tasks, and the words that say how they stand.

Records are frozen; a change makes a new one: ``task.evolve(status=TaskStatus.RUNNING)``. Field names, their
order and the eight state words are the public file format; the fields below the line "additions" are ours, and
a reader may drop them. Fields that are not known here are kept when a record is written back.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from numbers import Real
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.engine_options import has_valid_options
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, finish
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.jobs.validation import SHOWN, validate

FORMAT_VERSION = 1
MAX_NAME_LENGTH = 100

_SUBMITTED_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
STORED_NAME = re.compile(r"[\w-]{1,100}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ID_FORBIDDEN = re.compile(r"[/\x00-\x1f\x7f]")
_MAX_ID_BYTES = 200
# Every number has a bound: files may hold any, and what is computed with one must not fail.
_MAX_COUNT = 2**31 - 1
ALL_AT_ONCE = _MAX_COUNT  # tasks side by side: all that are independent, those added later too
_MAX_SECONDS = 100 * 366 * 86400.0
_MAX_BYTES = 2**63 - 1  # of what is kept in a signed integer of 64 bits
_MEMORY = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([KMGTkmgt]?)(i?)[Bb]?", re.ASCII)
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?)"
_NO_CPUS = "must be a number of processors, such as 2, 0.5 or '500m'"
_NO_DURATION = "must be a number of seconds, a timedelta, or a text such as '90s', '15m', '1h30m' or '2d'"
_DURATION = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?", re.ASCII)


class JobState(enum.StrEnum):
    """Where a job stands."""

    WAITING = "waiting"  # published, not looked at by the manager yet
    WORKING = "working"  # the manager runs its tasks
    COMPLETED = "completed"  # every task ended with exit code 0
    FAILED = "failed"  # anything else; `reason` and `error` say what

    @property
    def is_terminal(self) -> bool:
        """Whether a job in this state stays as it is until a request changes it."""
        return self in (JobState.COMPLETED, JobState.FAILED)

    def may_become(self, new: JobState) -> bool:
        """Whether the manager may move a job from this state to ``new``."""
        return new in _JOB_TRANSITIONS[self]


_JOB_TRANSITIONS = {
    JobState.WAITING: {JobState.WORKING, JobState.FAILED},
    JobState.WORKING: {JobState.WAITING, JobState.COMPLETED, JobState.FAILED},
    JobState.FAILED: {JobState.WAITING},
    # Only by hand, or when tasks are added: a finished job that gets new work.
    JobState.COMPLETED: {JobState.WAITING},
}


class TaskStatus(enum.StrEnum):
    """Where a task stands."""

    PENDING = "pending"  # not started, or to be started again
    RUNNING = "running"  # an attempt of it is running
    COMPLETED = "completed"  # its command ended with exit code 0, or it was skipped
    FAILED = "failed"  # anything else; `reason` and `error` say what

    @property
    def is_terminal(self) -> bool:
        """Whether a task with this status has ended."""
        return self in (TaskStatus.COMPLETED, TaskStatus.FAILED)


class RunIf(enum.StrEnum):
    """How the dependencies of a task must have ended so that it starts. Without one, all must have completed."""

    ALL_DONE = "all_done"  # all have ended, in whatever way
    ANY_FAILED = "any_failed"  # all have ended, and one of them failed; otherwise the task is skipped
    ALWAYS = "always"  # as all_done, and also if the job is cancelled or has timed out


# At the end of the error of an attempt that is lost, and whose machine cannot be asked.
MAY_STILL_RUN = "; it may still run there, so it is not tried again (see the setting fenced)"


class Reason(enum.StrEnum):
    """Why a task or a job failed, or why a task completed without an attempt."""

    EXIT = "exit"  # the command ended with another exit code than 0
    SIGNAL = "signal"  # the command was ended by a signal
    TIMEOUT = "timeout"  # it ran longer than allowed and was killed
    CANCELLED = "cancelled"  # by a request
    DEPENDENCY = "dependency"  # a task that it depends on failed
    LOST = "lost"  # its process is gone and left no result
    SPAWN = "spawn"  # the command could not be started
    INVALID = "invalid"  # its files are not valid
    SKIPPED = "skipped"  # it completed without an attempt: no task that it depends on failed


def utc_now() -> datetime:
    """The present time, aware, in UTC."""
    return datetime.now(tz=UTC)


def _as_utc(value: datetime) -> datetime:
    # A naive time is what the existing system fills in for a missing one; it means UTC.
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _valid_task_id(value: str) -> str:
    if not value:  # given by position when the list is read
        return value
    if value.startswith(".") or _ID_FORBIDDEN.search(value):
        raise ValueError("a task id must not begin with '.' nor contain '/' or control characters")
    if len(value.encode(errors="surrogatepass")) > _MAX_ID_BYTES:
        raise ValueError(f"a task id must not be longer than {_MAX_ID_BYTES} bytes")
    return value


def _valid_env(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not _VARIABLE.fullmatch(name):  # a POSIX sh does not hand on any other
            raise ValueError(f"{name!r} cannot be the name of an environment variable")
    return value


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _MEMORY.fullmatch(value.strip())
    if not match:
        raise ValueError("must be a number of bytes, or a text such as '512Mi' or '4G'")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def _seconds(value: Any) -> Any:
    if type(value) is float:  # as it is in most files: every task of a list comes by here several times
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(_NO_DURATION)
        return value
    match = _DURATION.fullmatch(value.strip())
    if match and any(match.groups()):
        return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
    try:
        return float(value)
    except ValueError:
        raise ValueError(_NO_DURATION) from None


def _cpus(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise ValueError(_NO_CPUS)
    try:
        if isinstance(value, str):
            return float(value.strip().removesuffix("m")) / (1000 if value.strip().endswith("m") else 1)
    except ValueError:
        raise ValueError(_NO_CPUS) from None
    return value


def _as_text(value: Any) -> Any:
    """What becomes an argument, or the value of a variable: a text, or what has only one text."""
    if isinstance(value, str):
        return _without_nul(value)
    if isinstance(value, bool):
        raise ValueError("must be a text; write the one that is meant, such as 'true', 'True' or '1'")
    if isinstance(value, Real | Decimal):
        return str(value)
    return _path_as_text(value)


def _path_as_text(value: Any) -> Any:
    return value if type(value) is str or not isinstance(value, os.PathLike) else os.fspath(value)


def _arguments(value: Any) -> Any:
    if isinstance(value, str):  # it may hold a secret, and is not shown
        raise ValueError('must be a list: ["..."]')
    return value


def _ids(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list: [{json.dumps(value, ensure_ascii=False)}]")
    return value


Timestamp = Annotated[datetime, AfterValidator(_as_utc)]
Text = Annotated[str, AfterValidator(_without_nul)]
NonEmptyText = Annotated[Text, Field(min_length=1)]
TaskId = Annotated[str, AfterValidator(_valid_task_id)]
Value = Annotated[str, BeforeValidator(_as_text)]  # of a variable, or an argument
PathText = Annotated[NonEmptyText, BeforeValidator(_path_as_text)]
Environment = Annotated[dict[str, Value], AfterValidator(_valid_env)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
RunnerName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=_MAX_SECONDS, allow_inf_nan=False)]
Delay = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=_MAX_SECONDS, allow_inf_nan=False)]
Cpus = Annotated[float, BeforeValidator(_cpus), Field(gt=0, le=_MAX_COUNT, allow_inf_nan=False)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0, le=_MAX_BYTES)]
Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Number = Annotated[int, Field(ge=-_MAX_COUNT, le=_MAX_COUNT)]


_put = object.__setattr__
_MOST_FIELD_SETS = 100
_FIELD_SETS: dict[frozenset[str], set[str]] = {}


class Record(BaseModel):
    """A frozen record that keeps the fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    def evolve(self, **changes: Any) -> Self:
        """A copy with some fields changed; the changes are trusted, not validated again."""
        # As model_copy does it, in fewer steps: the manager does this three times for each task.
        copied = object.__new__(type(self))
        extra, fields = self.__pydantic_extra__, self.__pydantic_fields_set__
        _put(copied, "__dict__", {**self.__dict__, **changes})
        _put(copied, "__pydantic_extra__", dict(extra) if extra else extra)
        # Both records can have the same set: neither is ever changed.
        _put(copied, "__pydantic_fields_set__", fields if fields.issuperset(changes) else fields | changes.keys())
        _put(copied, "__pydantic_private__", None)
        return copied

    def share_fields(self) -> None:
        """Have the same set of the names of fields as other records: one of its own would be most of what a task takes.

        No such set is ever changed.
        """
        fields = self.__pydantic_fields_set__
        key = frozenset(fields)
        if key in _FIELD_SETS or len(_FIELD_SETS) < _MOST_FIELD_SETS:
            _put(self, "__pydantic_fields_set__", _FIELD_SETS.setdefault(key, fields))


class Resources(BaseModel):
    """The resources that a task needs.

    :param cpus: processors; parts of one where the engine has them, also in thousandths: ``"500m"``.
    :param memory: bytes, or a text with a unit: ``"512Mi"``, ``"4Gi"`` (powers of 1024), ``"512M"``, ``"4G"`` (of
        1000).
    :param gpus: whole graphics processors. On the manager's machine the task finds the ids of its own in
        ``AIR_EXECUTOR_GPUS`` and ``CUDA_VISIBLE_DEVICES``.
    :param time: how long an attempt may take, for instance ``"1h30m"``. An engine passes it to its scheduler.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    cpus: Cpus | None = None
    memory: Bytes | None = None
    gpus: Count | None = None
    time: Seconds | None = None


class Task(Record):
    """One command of a job, and how it stands.

    The same class describes a task to be submitted and a task read from ``tasks.json``. To submit one, only
    ``command`` is needed: ``Task(command="echo", args=["hello"])``, or ``Task(bash="echo hello | wc -c")`` for a
    line that ``bash -c`` runs.

    :param id: name of the task within its job, at most 200 bytes without ``/``; default ``task-1``, ``task-2``, ...
        by its position in the list.
    :param command: the program to run: an absolute path, or a name that is looked up in ``PATH``. No shell reads it.
    :param args: its arguments, handed over as they are. Numbers and paths become text.
    :param dependencies: ids of the tasks of the same job that must have completed before this one starts.
    :param run_if: when it starts, if not after all of these have completed: ``all_done``: after all have ended, whether
        they failed or not. ``any_failed``: after all have ended, if one failed; otherwise the task is skipped: it
        completes without an attempt. ``always``: as ``all_done``, and also in a job that is cancelled or timed out: it
        starts once the tasks that ran have ended. A second request to cancel the job ends it too.
    :param env: environment variables added to the manager's own.
    :param append_env: False: the command has, of the manager's environment, only what programs need to run, see
        :func:`~airflow_provider_air_executor.system.environment.of_command`. On Kubernetes it has none of it anyway.
    :param cwd: the directory to run in. A path that is not absolute begins in the directory that a task without it
        runs in: ``work/`` in the directory of its job; the manager's for a job in the existing system's format; that
        of its image on Kubernetes.
    :param timeout: seconds one attempt may take before it is killed; default: the manager's ``task_timeout``.
    :param retries: how many more attempts are made after a failed one; default 0.
    :param retry_delay: seconds between an attempt's failure and the next attempt; default 0.
    :param runner: what runs it: ``local`` (a process of its own on the manager's machine), ``slurm``, ``kubernetes``,
        or another one that is installed there. ``warm`` is a local one for a command ``python -m module``, run in a
        process forked for it which has imported already what the module needs; where that cannot be, it starts cold.
        Default: what its job says, or else the manager's setting ``runner``.
    :param preload: the modules that such a process has imported, unless the manager's setting ``preload`` says so.
    :param preload_key: what it executes, for a warm one: the manager counts under it which modules such tasks import.
        The executor names the DAG file.
    :param resources: what it needs, see :class:`Resources`; default: what its engine gives to each task.

    A field that is called like an engine holds that engine's own options, which the engine checks, see
    :mod:`.engine_options`: ``slurm={"partition": "gpu"}``, ``kubernetes={"image": "busybox"}``.
    """

    id: TaskId = ""
    job_name: str = ""
    command: PathText
    args: Annotated[tuple[Value, ...], BeforeValidator(_arguments)] = ()
    dependencies: Annotated[tuple[str, ...], BeforeValidator(_ids)] = ()
    status: TaskStatus = TaskStatus.PENDING
    created_at: Timestamp | None = None
    started_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    error: str | None = None
    # additions
    env: Environment | None = None
    append_env: bool = True
    cwd: PathText | None = None
    timeout: Seconds | None = None
    retries: Count = 0
    retry_delay: Delay = 0
    runner: RunnerName | None = None
    preload: tuple[ModuleName, ...] | None = None
    preload_key: Annotated[NonEmptyText, Field(max_length=500)] | None = None
    resources: Resources | None = None
    run_if: RunIf | None = None
    attempt: Count = 0  # number of the latest attempt, 0 before the first
    attempts_before: Count = 0  # attempts made before the job was retried last
    exit_code: Number | None = None
    reason: Reason | None = None
    usage: Usage | None = None  # what the latest attempt has used, where its engine knows
    where: str | None = None  # where the latest attempt is, if not on the manager's machine; what the task waits for
    cancel_requested_at: Timestamp | None = None  # when the end of this task alone was requested

    @model_validator(mode="before")
    @classmethod
    def _bash_line(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"bash": data}
        if not isinstance(data, dict) or "bash" not in data:
            return data
        if data.keys() & {"command", "args"}:
            raise ValueError("give either bash, or command and args")
        if not isinstance(data["bash"], str) or not data["bash"].strip():
            raise ValueError("bash must be a line of shell code")
        rest = {key: value for key, value in data.items() if key != "bash"}
        return {**rest, "command": "bash", "args": ["-c", data["bash"]]}

    def fresh(self, job_name: str, created_at: datetime) -> Self:
        """The task as it was described, for a job of this name, without what an earlier run has left in it."""
        return self.evolve(**_NOT_STARTED, attempt=0, attempts_before=0, job_name=job_name, created_at=created_at)

    def reset(self) -> Self:
        """The task for another run of its job, which counts its attempts on."""
        return self.evolve(**_NOT_STARTED, attempts_before=self.attempt)

    def engine_options(self, name: str) -> dict[str, Any]:
        """A copy of the options that it has for an engine; they may have been written by hand, and not be valid.

        :raises ValueError: if they are not options by their names.
        """
        found = (self.model_extra or {}).get(name) or {}
        if not isinstance(found, Mapping):
            raise ValueError("options: must be a mapping")
        return dict(found)

    @property
    def seconds(self) -> float | None:
        """How long the latest attempt ran, in seconds, once it has ended."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()


# How a task stands before an attempt; the other fields say what it is, but for the numbers of its attempts.
_NOT_STARTED: dict[str, Any] = {
    "status": TaskStatus.PENDING,
    **dict.fromkeys(
        ("started_at", "completed_at", "error", "exit_code", "reason", "usage", "where", "cancel_requested_at")
    ),
}


_IDENTITY = ("dag_id", "run_id", "task_id", "map_index")  # of a task of an Airflow


class SubmittedBy(Record):
    """The Airflow task that submitted a job, or the callback of a task or a DAG run."""

    dag_id: Text
    run_id: Text
    task_id: Text  # empty: the DAG run itself
    map_index: Number = -1
    try_number: Number | None = None
    max_tries: Number | None = None  # Airflow raises it when the task is cleared, not when it is tried again
    callback: Text | None = None  # which one, if it was a callback
    clear_number: Number | None = None  # how often the DAG run had been cleared, if it was a callback of that
    installation: Text | None = None  # which Airflow; several may use one base path, and run the same DAGs
    token: Text | None = None  # the name of the token with which a server was asked

    @classmethod
    def of_task(cls, ti: Any, **facts: Any) -> SubmittedBy:
        """The try of an Airflow task.

        :param ti: its task instance, as any part of Airflow knows it.
        :param facts: what else is known.
        """
        map_index = -1 if ti.map_index is None else ti.map_index
        return cls(
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=map_index,
            try_number=ti.try_number,
            **facts,
        )

    def is_elsewhere(self, other: SubmittedBy) -> bool:
        """Whether the other one is known to be of another Airflow. Earlier versions did not say which."""
        return None not in (self.installation, other.installation) and self.installation != other.installation

    def is_same_task(self, other: SubmittedBy) -> bool:
        """Whether both are tries of the same task of the same run."""
        same = all(getattr(self, field) == getattr(other, field) for field in _IDENTITY)
        return same and not self.is_elsewhere(other)

    def is_same_run(self, other: SubmittedBy) -> bool:
        """Whether both are tries of the same task and it was not cleared in between."""
        return self.is_same_task(other) and self.max_tries == other.max_tries

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        task = f"task {self.task_id}{mapped} of " if self.task_id else ""
        return f"{task}DAG {self.dag_id}, run {self.run_id}"


class Job(Record):
    """A job: its name, how it stands, and how it is to be run.

    :param max_parallel_tasks: how many of its tasks may run side by side; without it, as in files of
        the existing system, one at a time, in order.
    :param timeout: seconds from its start after which the whole job is killed.
    :param priority: jobs with a higher number start their tasks first; default 0.
    :param labels: names and values by which jobs can be distinguished.
    :param outlets: the URIs of the data that it makes or changes, for those that wait for it.
    :param runner: what runs those of its tasks that do not say; default: what the manager's settings say.
    :param work_directory: whether its tasks have a directory of their own to run in, ``work/`` in that of the job.
    :param started_clock: when it was started by a clock that cannot be set: the boot of the machine, and seconds since.
    :param attempt: how often the job has been started; a retry adds one.
    """

    id: str
    name: str
    state: JobState = JobState.WAITING
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None
    # additions
    started_at: Timestamp | None = None
    max_parallel_tasks: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    timeout: Seconds | None = None
    priority: Annotated[int, Field(ge=-_MAX_BYTES, le=_MAX_BYTES)] = 0
    labels: dict[Text, Text] = {}
    outlets: tuple[NonEmptyText, ...] = ()
    runner: RunnerName | None = None
    work_directory: bool = False
    submitted_by: SubmittedBy | None = None
    started_clock: str | None = None
    attempt: Count = 0
    cancel_requested_at: Timestamp | None = None
    cancel_again_requested_at: Timestamp | None = None
    keep_failed: bool = False  # while it waits: whether tasks that have failed stay so when it starts again
    reason: Reason | None = None
    error: str | None = None
    format_version: Number = FORMAT_VERSION

    def belongs_to(self, owner: SubmittedBy | None) -> bool:
        """Whether the job was submitted by this run of an Airflow task. Without a run, returns True."""
        return owner is None or (self.submitted_by is not None and self.submitted_by.is_same_run(owner))


TASK_LIST = TypeAdapter(tuple[Task, ...], config=ConfigDict(defer_build=True))


def check_stored_name(name: str) -> str:
    """Return ``name`` if a job found on disk may be called so.

    :raises InvalidJobError: when it is not 1 to 100 letters, digits, ``-`` or ``_``.
    """
    if not STORED_NAME.fullmatch(name):
        raise InvalidJobError(
            f"job name {name!r} is not valid: 1 to {MAX_NAME_LENGTH} letters, digits, '-' and '_' are allowed"
        )
    return name


def check_submitted_name(name: str) -> str:
    """Return ``name`` if a new job may be called so: as for a stored one, but ASCII letters and digits only.

    :raises InvalidJobError: when it may not.
    """
    if not isinstance(name, str) or not _SUBMITTED_NAME.fullmatch(name):
        raise InvalidJobError(
            f"job name {name!r} is not valid: 1 to {MAX_NAME_LENGTH} ASCII letters, digits, '-' and '_' are allowed"
        )
    return name


def valid_job_name(text: str) -> str:
    """Map any text to a valid job name: always the same one, and different ones for different texts.

    A text that is a valid name stays as it is. In others, what is not allowed becomes ``_``, and 64 bits of the
    SHA-256 of the whole text at the end keep names apart that would otherwise meet.

    :raises InvalidJobError: when the text is empty.
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidJobError(f"job name {text!r} is not valid: it is empty, or not a text")
    return text if _SUBMITTED_NAME.fullmatch(text) else name_with_digest(text, text)


def name_with_digest(readable: str, identity: str) -> str:
    """A valid job name that begins like ``readable`` and is unique for ``identity``."""
    import hashlib

    digest = hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:16]
    head = re.sub(r"[^A-Za-z0-9_-]+", "_", readable).strip("_")[: MAX_NAME_LENGTH - 17]
    return f"{head or 'job'}-{digest}"


def default_job_name(owner: SubmittedBy) -> str:
    """The name of a job that an Airflow task submits without naming it: always the same, and only its own."""
    parts = [owner.dag_id, owner.run_id, owner.task_id, owner.map_index]
    if owner.installation is not None:
        parts.append(owner.installation)
    mapped = f"__{owner.map_index}" if owner.map_index >= 0 else ""
    return name_with_digest(f"{owner.dag_id}__{owner.task_id}{mapped}__{owner.run_id}", json.dumps(parts))


def printable(text: str) -> str:
    """The text without what not all readers can keep: bytes of a path that are no UTF-8, and NUL, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def check_task_id(task_id: str) -> str:
    """Return ``task_id`` if a task may be called so.

    :raises InvalidJobError: when it may not, since it is the name of a file too.
    """
    try:
        if task_id:
            return _valid_task_id(task_id)
    except ValueError as error:
        raise InvalidJobError(f"task id {task_id!r} is not valid: {error}") from None
    raise InvalidJobError("a task id must not be empty")


def checking_ids(tasks: Sequence[Task]) -> Pieces[None]:
    """See :func:`check_task_id`, in pieces."""
    for number, task in enumerate(tasks, 1):
        check_task_id(task.id)
        if not number % ITEMS:
            yield False


def parse_tasks(
    raw: Any, *, where: str = "tasks", present: Sequence[Task] = (), first: int | None = None
) -> tuple[Task, ...]:
    """Make tasks of what a user gave: a list of :class:`Task`, dicts, or bash lines.

    Ids that are missing are filled in by position, and the list as a whole is checked
    (:func:`checking_task_list`). Fields that no task has are refused: they are most often a slip of the pen.

    :param present: the tasks that the job has already, if these are to be added to it.
    :param first: the position of the first one; default: after those.
    :raises InvalidJobError: naming each field that is not valid.
    """
    if isinstance(raw, str | bytes) or not isinstance(raw, Sequence):
        raise InvalidJobError(f"{where}: must be a list of tasks, not {type(raw).__name__}")
    given = [item.model_dump(exclude_unset=True) if isinstance(item, Task) else item for item in raw]
    for index, item in enumerate(given):
        if isinstance(item, Mapping):
            _refuse_unknown_fields(item, f"{where}[{index}]")
    tasks: tuple[Task, ...] = validate(TASK_LIST, given, where)
    tasks = tuple(
        task if task.id else task.evolve(id=f"task-{number}")
        for number, task in enumerate(tasks, start=len(present) + 1 if first is None else first)
    )
    for index, task in enumerate(tasks):
        if task.run_if is not None and not task.dependencies:
            raise InvalidJobError(f"{where}[{index}].run_if: needs dependencies, the tasks whose end it waits for")
    finish(checking_task_list(tasks, where=where, present={task.id: task for task in present}))
    return tasks


# What users of other systems call a field of a task, or of its resources.
_OTHER_NAMES = {
    **dict.fromkeys(("cmd", "program", "executable"), "command"),
    **dict.fromkeys(("arguments", "argv", "params"), "args"),
    **dict.fromkeys(("bash_command", "script", "shell", "sh", "run"), "bash"),
    **dict.fromkeys(("name", "task_id", "task", "key", "label"), "id"),
    **dict.fromkeys(("depends_on", "depends", "needs", "after", "upstream", "requires"), "dependencies"),
    **dict.fromkeys(("trigger_rule", "when", "condition"), "run_if"),
    **dict.fromkeys(("environment", "env_vars", "environ", "variables"), "env"),
    **dict.fromkeys(("workdir", "working_dir", "working_directory", "directory", "dir"), "cwd"),
    **dict.fromkeys(("execution_timeout", "time_limit", "timeout_seconds"), "timeout"),
    **dict.fromkeys(("max_retries", "retry", "attempts"), "retries"),
    **dict.fromkeys(("delay", "retry_interval", "backoff"), "retry_delay"),
    **dict.fromkeys(("executor", "engine", "queue", "pool"), "runner"),
    **dict.fromkeys(("requests", "limits"), "resources"),
    **dict.fromkeys(("mem", "ram"), "memory"),
    **dict.fromkeys(("cores", "vcpus", "processors"), "cpus"),
}


def _refuse_unknown_fields(task: Mapping[Any, Any], where: str) -> None:
    """Refuse fields that there are not: they are most often a slip of the pen.

    :raises InvalidJobError: naming the field that is meant, if that can be seen.
    """
    runner, resources = task.get("runner"), task.get("resources")
    for name, value in task.items():
        path = f"{where}.{name}"
        if name in Task.model_fields or name == "bash":
            continue
        if isinstance(name, str) and has_valid_options(name, value, path, runner if isinstance(runner, str) else None):
            continue
        raise InvalidJobError(f"{path}: there is no such field{_hint(name, [*Task.model_fields, 'bash'])}")
    for name in resources if isinstance(resources, Mapping) else ():
        if name not in Resources.model_fields:
            hint = _hint(name, Resources.model_fields)
            raise InvalidJobError(f"{where}.resources.{name}: there is no such field{hint}")


def _hint(name: object, names: Iterable[str]) -> str:
    """Which of these names may be meant by another one."""
    import difflib

    known = list(names)
    other = _OTHER_NAMES.get(str(name).lower())
    close = [other] if other in known else difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def checking_task_list(
    tasks: Sequence[Task], *, where: str = "tasks", present: Mapping[str, Task] | None = None
) -> Pieces[None]:
    """Check, in pieces, what a single task does not show: ids are unique, and dependencies lead to an order.

    :param present: tasks of the same job that were there before and may be depended on, by their ids. They have been
        checked, and depend on none of the others.
    :raises InvalidJobError: for an empty list, a duplicate id, an unknown dependency, or a cycle.
    """
    if not tasks:
        raise InvalidJobError(f"{where}: the list is empty; a job needs at least one task")
    present = present or {}
    missing: dict[str, int] = {}  # how many of these tasks each of them waits for
    for index, task in enumerate(tasks):
        if task.id in missing or task.id in present:
            raise InvalidJobError(f"{where}[{index}].id: {task.id!r} is the id of another task of this job")
        missing[task.id] = 0
        if not index % ITEMS:
            yield False
    dependents: dict[str, list[str]] = {}
    ready = []
    for index, task in enumerate(tasks):
        for number, name in enumerate(task.dependencies):
            if name in missing:
                dependents.setdefault(name, []).append(task.id)
                missing[task.id] += 1
            elif name not in present:
                raise InvalidJobError(f"{where}[{index}].dependencies: there is no task {name!r} in this job")
            if number and not number % ITEMS:
                yield False
        if not missing[task.id]:
            ready.append(task.id)
        if not index % ITEMS:
            yield False
    done = 0
    while ready:
        done += 1
        for number, dependent in enumerate(dependents.pop(ready.pop(), ()), 1):
            missing[dependent] -= 1
            if not missing[dependent]:
                ready.append(dependent)
            if not number % ITEMS:
                yield False
        if not done % ITEMS:
            yield False
    if done < len(tasks):
        left = {task.id: task for task in tasks if missing[task.id]}
        raise InvalidJobError(f"{where}: the dependencies form a cycle: {' -> '.join(_cycle(left))}")


def _cycle(left: Mapping[str, Task]) -> list[str]:
    """Tasks each of which depends on the next, the last one being the first.

    :param left: each of them depends on another one of them.
    """
    path: dict[str, int] = {}
    name = next(iter(left))
    while name not in path:
        path[name] = len(path)
        name = next(each for each in left[name].dependencies if each in left)
    cycle = [*list(path)[path[name] :], name]
    return cycle if len(cycle) <= SHOWN else [*cycle[: SHOWN - 1], f"({len(cycle) - SHOWN} more)", name]


def nearest_tasks(tasks: Sequence[Task], task_id: str, count: int) -> list[Task]:
    """The tasks nearest to one of them along the dependencies, in either direction, in the order of the list.

    :param task_id: that one; if it is not there, nothing is near.
    :param count: at most so many, itself among them.
    """
    neighbours: dict[str, list[str]] = {task.id: list(task.dependencies) for task in tasks}
    for task in tasks:
        for dependency in task.dependencies:
            neighbours.setdefault(dependency, []).append(task.id)
    found: dict[str, None] = {}
    waiting = deque([task_id])
    while waiting and len(found) < count:
        name = waiting.popleft()
        if name not in found:
            found[name] = None
            waiting.extend(neighbours.get(name, ()))
    return [task for task in tasks if task.id in found]
