"""The interface to one batch system: its command lines, and how to parse their output. All of it is pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from airflow_provider_air_executor.jobs.models import Reason, Resources
from airflow_provider_air_executor.jobs.usage import Usage


class Phase(enum.Enum):
    """How far a batch job is."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    OVER = enum.auto()


class State(NamedTuple):
    """The state of a batch job, from the output of the system."""

    word: str  # the system's own
    phase: Phase
    why: str = ""  # the reason why it waits, or why it has ended
    nodes: str = ""
    is_shared: bool = False  # whether it runs several attempts
    reason: Reason | None = None  # if the system has ended it before its time
    waits_for_ever: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.phase is Phase.OVER


# A batch job that was submitted a moment ago, and one that the system does not list any more.
SUBMITTED, GONE = State("submitted", Phase.WAITING), State("unknown", Phase.OVER)


class Listed(NamedTuple):
    """A batch job in the system's list."""

    number: str
    state: State
    tokens: Sequence[str]  # of the attempts that it runs, as far as the list names them


class Kept(NamedTuple):
    """What the system's accounting says of a batch job."""

    is_final: bool  # whether the job is over there, too
    usage: Usage | None


class Submission(NamedTuple):
    """The submission of one attempt.

    :param token: by which the attempt is known in the system's list.
    :param name: of the job and the task.
    :param handle_path: of the script that runs the attempt.
    :param log_path: the file for messages of the system itself.
    :param options: those of the command that submits.
    :param seconds: that it may take.
    """

    token: str
    name: str
    handle_path: str
    log_path: str
    options: Mapping[str, str]
    seconds: float | None = None


class Dialect(Protocol):
    """The command lines of a batch system. A module may be one."""

    NAME: str  # of the engine
    TITLE: str  # of the system, for people
    COMMANDS: Sequence[str]  # that must be in ``PATH``
    IDENTITY: str  # the shell expression of the number of the batch job, where that runs
    GROUP: str  # the pattern of ``sh`` of the paths of control groups that are its own there; empty: it has none

    def is_for_commands(self, variable: str) -> bool:
        """Whether the system's commands get this variable of the manager's environment."""

    def is_exported(self, variable: str) -> bool:
        """Whether a task gets this variable; False for one that is set where the batch job runs."""

    def check_options(self, given: Mapping[str, Any]) -> dict[str, str]:
        """The options of the command that submits, by their long names; the value is ``""`` for a flag.

        :raises ValueError: naming the one that is not valid.
        """

    def resource_options(self, resources: Resources | None) -> dict[str, str]:
        """The same for what a task needs."""

    def nearest(self, *layers: Mapping[str, str]) -> dict[str, str]:
        """Options put together. Of those that exclude each other, those of the last layer are left."""

    def submit(self, submissions: Sequence[Submission]) -> tuple[list[str], bytes]:
        """The command line that submits one batch job for one attempt or several, and its standard input."""

    def number(self, output: str) -> str | None:
        """The number of the batch job that was submitted; None if the output does not say."""

    def may_pass(self, said: str) -> bool:
        """Whether the reason for which a submission was refused may pass."""

    def query(self) -> list[str]:
        """The command line that lists the user's batch jobs."""

    def listed(self, output: str) -> Iterator[Listed]:
        """The batch jobs in its output."""

    def accounting(self, numbers: Sequence[str]) -> list[str]:
        """The command line that shows what batch jobs have used; it fails where nobody keeps that."""

    def kept(self, output: str) -> Mapping[str, Kept]:
        """What its output says, by the numbers of the jobs."""

    def cancel(self, numbers: Sequence[str], signal: str | None = None) -> list[str]:
        """The command line that ends batch jobs, or sends a signal to all of their processes."""
