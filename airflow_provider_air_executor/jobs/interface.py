"""What all that is above a job filesystem needs of it: :class:`Jobs`.

There are two implementations: the files (:class:`~.file_jobs.FileJobs`), and a manager on another machine
(:class:`~airflow_provider_air_executor.remote.jobs.RemoteJobs`). Nothing above knows which one it has.

Texts that are for people (logs, lines, what held a job up) come without secrets from both. Records come as they are
from the files, and without secrets from another machine, so that :meth:`Jobs.mask` is empty there.
"""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple, Protocol, Unpack

from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.history import PastJob, Run
from airflow_provider_air_executor.jobs.index import OutcomeCounts
from airflow_provider_air_executor.jobs.log_search import Found
from airflow_provider_air_executor.jobs.log_times import LogTimes
from airflow_provider_air_executor.jobs.logs import LogChunk
from airflow_provider_air_executor.jobs.manager_control import Control
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, Task
from airflow_provider_air_executor.jobs.outputs import ShownResults
from airflow_provider_air_executor.jobs.spec import JobSpec

Tasks = Iterable[Task | Mapping[str, Any] | str]

ANSWER_BYTES = 65_536  # of logs, after which :meth:`Jobs.new_lines` reads no further


class Reached(NamedTuple):
    """What a test of a connection has found."""

    is_well: bool  # whether jobs that are submitted now will run
    message: str  # a sentence: what is reached, which version, how many slots are free, whose token it is


class JobFilter(NamedTuple):
    """Which jobs a subscriber wants to hear of; it can be sent to another machine."""

    name: str = "*"  # with ``*``, ``?`` and ``[...]`` as in a shell
    labels: tuple[tuple[str, str], ...] = ()  # all of them
    states: tuple[str, ...] = ("completed", "failed")
    outlet: str | None = None  # the URI of something that the job has declared to make or change

    def matches(self, job: Job) -> bool:
        """Whether this is one of the jobs."""
        return (
            job.state.value in self.states
            and fnmatch.fnmatchcase(job.name, self.name)
            and dict(self.labels).items() <= job.labels.items()
            and (self.outlet is None or self.outlet in job.outlets)
        )


class LinePosition(NamedTuple):
    """How far the lines of a log have been handed on."""

    offset: int = 0  # in bytes
    state: str | None = None  # that was shown last, of a line that is written over and has not ended
    is_due: bool = True  # whether the next state of such a line is to be shown; False after it has been


class NewLines(NamedTuple):
    """The lines of a log that have come since a position."""

    lines: tuple[str, ...]  # without secrets
    position: LinePosition
    is_truncated: bool = False  # whether the log begins anew: nothing else is said then


class JobLog(Protocol):
    """The log of one task, without secrets. Offsets are those of the file itself, in bytes.

    All methods raise :class:`OSError` if it cannot be read now, and :class:`JobNotFoundError` if the job is gone.
    """

    def size(self) -> int:
        """Its length in bytes; 0 if there is none."""

    def read(self, offset: int = 0, limit: int | None = None, *, is_over: bool = True) -> LogChunk:
        """A piece of it; see :meth:`.masking.Mask.read_log`.

        :param offset: where to start; negative: so many bytes before the end.
        :param limit: at most so many bytes; default: all there is.
        :param is_over: whether nothing more will be printed.
        """

    def line_from(self, offset: int, limit: int) -> int:
        """Where the first line begins that is whole, at ``offset`` or after it; see :meth:`.logs.TaskLog.line_from`."""

    def lines_before(self, offset: int, limit: int) -> int | None:
        """How many lines end before ``offset``; see :meth:`.logs.TaskLog.lines_before`."""

    def tail(self, lines: int) -> list[str]:
        """The last lines, of at most 64 KiB."""

    def search(self, text: str, offset: int, end: int) -> Found:
        """The lines that have a text; see :func:`.log_search.search`."""

    def times(self) -> LogTimes:
        """When it has grown, and which part of it each attempt has printed."""


STATE, TASKS, OUTPUT = "state", "tasks", "log"  # what may have changed of a job
CONNECTION = "connection"  # another machine is away now, or back


class JobWatch(Protocol):
    """Waits in an event loop until one job may have changed, and reads it."""

    @property
    def sees_output(self) -> bool:
        """Whether it is woken too when a task has printed something."""

    @property
    def changed(self) -> Collection[str]:
        """What may have changed before the last call of :meth:`wait` returned, in the words above."""

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - it is no error
        """Wait until the job may have changed since the last call.

        :param timeout: at most so many seconds.
        :return: False if nothing has changed in that time.
        """

    async def read(self) -> Job:
        """The job as it is now, or was when it changed last.

        :raises JobNotFoundError: if there is none.
        :raises AirExecutorError: if it cannot be read, which need not be so for ever.
        :raises OSError: if it cannot be read now.
        """


class JobIndexView(Protocol):
    """All jobs at a glance, for repeated looks; see :class:`.index.JobIndex`."""

    @property
    def unreadable(self) -> int:
        """How many jobs there are of which nothing is known, since they may not be read."""

    def jobs(self) -> Sequence[Job]:
        """All jobs, the newest first, as they were at most a second ago or so.

        :raises OSError: if they cannot be read now.
        """

    def outcomes(self, job_name: str) -> OutcomeCounts:
        """How many tasks of a job stand how; empty if that is not known."""

    def shown_labels(self, job: Job) -> Mapping[str, str]:
        """The labels of a job without secrets."""


class Completions(Protocol):
    """The ends of jobs, each delivered once to a subscriber; see :class:`.completions.JobCompletions`."""

    def follow(self) -> AsyncGenerator[Job, None]:
        """Deliver each end, the oldest first, until the caller has had enough; it can be called once."""

    def ack(self, job: Job) -> None:
        """Acknowledge an end: it has been dealt with."""

    def nack(self, job: Job) -> None:
        """Refuse an end: it is delivered once more."""


class Jobs(Protocol):
    """A job filesystem, here or on another machine.

    What cannot be reached or read now raises :class:`OSError`, which is no failure of the job. An
    :class:`~airflow_provider_air_executor.exceptions.AirExecutorError` is the answer.
    """

    @property
    def where(self) -> str:
        """Where it is, for people: the base path, or a URL."""

    def with_patience(self, patience: float | None) -> Jobs:
        """The same jobs, for calls that raise :class:`JobsAwayError` when another machine is away for so long.

        :param patience: 0: a call is not repeated; None: it is until the machine is back, which is the default.
        """

    # -- submitting and changing -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make sure that jobs can be submitted and will run, before anything is written.

        :raises NoLocksError: if no manager can run there.
        :raises BasePathError: if there can be no job filesystem.
        """

    def submit(
        self,
        name: str,
        tasks: Tasks,
        *,
        submitted_by: SubmittedBy | None = None,
        secrets: Collection[str] = (),
        **spec: Unpack[JobSpec],
    ) -> Job:
        """Publish a job, exactly once or not at all; see :meth:`.store.JobStore.submit`.

        :param secrets: texts in it that must not be shown to people.
        """

    def cancel(
        self, name: str, owner: SubmittedBy | None = None, tasks: Iterable[str] = (), *, again: bool | None = None
    ) -> bool:
        """Request that a job, or some of its tasks, are cancelled; see :func:`.inbox.cancel`."""

    def retry(self, name: str, tasks: Iterable[str] = (), *, all: bool = False) -> None:  # noqa: A002
        """Request a retry; see :func:`.inbox.retry`."""

    def add_tasks(self, name: str, tasks: Tasks, *, secrets: Collection[str] = ()) -> tuple[str, ...]:
        """Ask for tasks to be appended; see :func:`.inbox.add_tasks`."""

    def reattach(self, name: str, owner: SubmittedBy) -> None:
        """Record that this try of an Airflow task waits for the job from now on; see :func:`.inbox.reattach`."""

    def delete(self, name: str) -> None:
        """Remove a job that has ended; see :meth:`.store.JobStore.delete`."""

    def may_change(self, job: Job) -> bool:
        """Whether this job may be cancelled, retried and removed from here, so that it can be offered.

        With files it is True, and one learns it by trying. On another machine the scope of the token decides.

        :raises OSError: if that cannot be asked now.
        """

    # -- reading ---------------------------------------------------------------------------------------------------

    def get_job(self, name: str) -> Job:
        """The job of this name.

        :raises JobNotFoundError: if there is none.
        :raises CorruptFileError: if it cannot be read.
        """

    def get_tasks(self, name: str, only: Collection[str] = (), *, at_once: bool = False) -> tuple[Task, ...]:
        """The tasks of a job, in the order of the list; see :meth:`get_job`.

        :param only: those that are asked for, by their ids; default: all.
        :param at_once: whether a file that is half-written is refused at once, and not read again for a moment.
        """

    def outcomes(self, name: str) -> OutcomeCounts:
        """How many tasks of a job stand how, now; empty if that is not known. Of many jobs, :meth:`index` has it."""

    def get_attempts(self, name: str, tasks: Iterable[Task] | None = None) -> tuple[AttemptRecord, ...]:
        """The attempts of a job's tasks; see :meth:`.store.JobStore.get_attempts`."""

    def list_jobs(self) -> Iterator[Job]:
        """All jobs that can be read, by name."""

    def index(self, *, ahead: bool = False) -> JobIndexView:
        """All jobs at a glance; this process keeps it.

        :param ahead: whether it is kept up to date as long as there are calls now and then, so that they need not wait.
        """

    def mask(self, name: str) -> Mask:
        """What replaces the secrets of a job's records.

        :raises AirExecutorError: if they cannot be read: then nothing of the job should be shown.
        """

    def log(self, name: str, task_id: str) -> JobLog:
        """The log of a task.

        :raises InvalidJobError: if no task can have this id.
        """

    def log_location(self, name: str) -> str:
        """Where the logs of a job are, for people."""

    def new_lines(
        self, name: str, positions: Mapping[str, LinePosition], *, is_over: bool = False
    ) -> Mapping[str, NewLines]:
        """What the tasks have printed since some positions, of those of which there is something new.

        The tasks are read in the order of their positions. If :data:`ANSWER_BYTES` or more have been read, there may be
        more of the last one in the answer, and of those after it.

        :param positions: by the ids of tasks.
        :param is_over: whether the job has ended: then a last line without an end is one, too.
        """

    def load_positions(self, name: str, reader: str) -> dict[str, int]:
        """The position of a reader in the logs of a job, as :meth:`save_positions` has it; empty if there is none."""

    def save_positions(self, name: str, reader: str, offsets: Mapping[str, int]) -> None:
        """Persist the position of a reader in the logs of a job; nothing happens if the job is gone.

        :param reader: letters and digits.
        """

    def results(self, name: str, reserved: Sequence[frozenset[str]] = (), *, masked: bool = False) -> dict[str, Any]:
        """What the completed tasks of a job have handed over, by their ids; see :func:`.outputs.read_outputs`.

        :param masked: whether it is for people, and so without secrets.
        """

    def shown_results(self, name: str, tasks: Collection[str] = (), *, limit: int, offset: int = 0) -> ShownResults:
        """The results of the completed tasks of a job for people, without secrets; see :func:`.outputs.shown_results`.

        :param tasks: of these, by their ids; default: of all.
        """

    def past_jobs(self) -> Iterator[PastJob]:
        """The jobs that were removed, those first that were removed last."""

    def durations(self, series: str) -> list[Run]:
        """The runs of a series that have ended; see :func:`.history.durations`."""

    # -- the manager -----------------------------------------------------------------------------------------------

    def manager(self) -> ManagerInfo | None:
        """The manager that runs the jobs; None if there is none.

        :raises NoLocksError: if that cannot be known.
        """

    def ensure_manager(self) -> None:
        """Start the manager if it is embedded and none runs.

        :raises ManagerError: if it cannot be started.
        """

    def trouble(self, name: str) -> str:
        """What is said beside the progress of a job that does not progress; see :func:`.summary.trouble`."""

    def held_up(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Why some jobs do not progress, by their names; see :func:`.summary.why_each_blocked`."""

    def control(self) -> Control:
        """What the manager is to do, see :mod:`.manager_control`."""

    def set_paused(self, paused: bool) -> None:
        """Let the manager start no more tasks, or start them again; see :func:`.manager_control.set_paused`."""

    def set_slots(self, slots: int | None, runner: str = "local") -> None:
        """Set how many attempts a runner may have at a time; see :func:`.manager_control.set_slots`."""

    def test(self) -> Reached:
        """Whether jobs can be submitted here, and will run."""

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait(self, name: str, timeout: float) -> bool:
        """Wait in this thread, at most so many seconds, until a job may have changed since the last look at it.

        With files, it is always the whole time, and the job may have changed.

        :return: False if it has not changed, so that it need not be read.
        """

    def watching(self, name: str, *, interval: float) -> AbstractAsyncContextManager[JobWatch]:
        """Watch a job, which need not exist yet. All watches of this process share one connection or pass.

        :param interval: seconds between two passes over the jobs, at least, where nothing notifies.
        """

    def completions(self, subscriber: str, wanted: JobFilter, *, interval: float, formerly: str = "") -> Completions:
        """The ends of jobs for a subscriber; see :class:`.completions.JobCompletions`."""

    def only_one(self, what: str) -> AbstractContextManager[None]:
        """Let one process after the other, of all that use this job filesystem, do what is within.

        :param what: a word for it, of letters.
        """
