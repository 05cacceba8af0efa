"""What clients send, and what they get: the bodies of requests and answers that are not records of jobs."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

from airflow_provider_air_executor.jobs.models import Count, Job, SubmittedBy

MOST_NAMES = 10_000  # of jobs, in one request


def _decoded(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be a text in Base64")
    return base64.b64decode(value, validate=True)


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


Content = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(_encoded),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Message(BaseModel):
    """The body of a request; other fields than these are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Spec(Message):
    """How a job is to be run, see :class:`~airflow_provider_air_executor.jobs.spec.JobSpec`."""

    max_parallel_tasks: int | None = None
    timeout: float | str | None = None
    priority: int | None = None
    labels: dict[str, str] | None = None
    outlets: list[str] = []
    runner: str | None = None


class Submission(Message):
    """A job that is to be submitted.

    :param attached: files for its tasks, by name.
    :param key: a word that the client makes up for each submission, and repeats when it asks again.
    """

    name: str
    tasks: list[dict[str, Any] | str]
    spec: Spec = Spec()
    submitted_by: SubmittedBy | None = None
    secrets: list[str] = []
    attached: dict[str, Content] = {}
    key: Key | None = None


class Cancel(Message):
    """A job is to be cancelled, or some of its tasks.

    :param owner: the Airflow task that asks, if the job is to be cancelled only as long as it belongs to that.
    :param again: whether the job was being cancelled already when the client looked.
    """

    owner: SubmittedBy | None = None
    tasks: list[str] = []
    again: bool = False


class Requested(BaseModel):
    """Whether the manager has been asked; otherwise there was nothing to do."""

    requested: bool


class Retry(Message):
    """A job is to run again, or some of its tasks.

    :param attempt: that of the job when the client looked: the job is retried once only.
    """

    tasks: list[str] = []
    all: bool = False
    attempt: Count | None = None


class Addition(Message):
    """Tasks that are to be appended to a job.

    :param key: a word that the client makes up for each addition, and repeats when it asks again.
    """

    tasks: list[dict[str, Any] | str]
    secrets: list[str] = []
    key: Key


class Added(BaseModel):
    """The ids of new tasks."""

    ids: list[str]


class Query(Message):
    """The names of jobs."""

    names: Annotated[list[str], Field(max_length=MOST_NAMES)]


class Position(Message):
    """How far the lines of a log have been handed on."""

    offset: Annotated[int, Field(ge=0, lt=2**62)] = 0
    state: str | None = None
    is_due: bool = False


class Positions(Message):
    """How far the lines of some tasks have been handed on."""

    positions: dict[str, Position]
    is_over: bool = False


class TaskLines(BaseModel):
    """The lines of a task that have come since a position."""

    lines: list[str]
    position: Position
    is_truncated: bool


class NewLinesOfTasks(BaseModel):
    """The lines of tasks, by their ids; those of which there are no new ones are left out."""

    lines: dict[str, TaskLines]


class Offsets(Message):
    """The position of a reader in the logs of a job, by the ids of the tasks."""

    offsets: dict[str, Annotated[int, Field(ge=0, lt=2**63)]]


class LastLines(BaseModel):
    """The last lines of a log."""

    lines: list[str]


class Location(BaseModel):
    """Where something is, for people."""

    location: str


class Results(BaseModel):
    """What the completed tasks of a job have handed over, by their ids."""

    results: dict[str, Any]


class Remark(BaseModel):
    """What is said of a job that does not progress; empty if there is nothing to say."""

    remark: str


class HeldUp(BaseModel):
    """Why jobs do not progress, by their names."""

    held_up: dict[str, str]


class ControlNow(BaseModel):
    """What the manager is to do."""

    paused: bool
    slots: dict[str, int]


class ControlChange(Message):
    """What the manager is to do; what is left out stays.

    :param slots: by the names of runners; one without a number has as many as the settings say.
    """

    paused: bool | None = None
    slots: dict[str, int | None] = {}


class Lease(BaseModel):
    """A lock that is held.

    :param seconds: after which it is free again, unless it is asked for again before.
    """

    seconds: float


class OneJob(BaseModel):
    """A job, without secrets."""

    job: Job


class Versions(BaseModel):
    """The versions of the protocol that are understood."""

    lowest: int
    highest: int


class Token(BaseModel):
    """Whose token it is."""

    name: str
    scope: str
    expires_at: datetime | None


class Hello(BaseModel):
    """Who answers."""

    protocol: Versions
    version: str
    base_path: str
    token: Token
    manager: dict[str, Any] | None
    embedded: bool


class Health(BaseModel):
    """That the server answers."""

    status: str
