"""RemoteJobs: the job filesystem on another machine, as :class:`~airflow_provider_air_executor.jobs.interface.Jobs`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Unpack

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    CorruptFileError,
    JobsAwayError,
    OutputError,
    ProtocolError,
)
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.history import PastJob, Run
from airflow_provider_air_executor.jobs.index import OutcomeCounts
from airflow_provider_air_executor.jobs.interface import JobFilter, LinePosition, NewLines, Reached, Tasks
from airflow_provider_air_executor.jobs.manager_control import Control
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, Task, check_stored_name, check_submitted_name
from airflow_provider_air_executor.jobs.outcomes import Outcome
from airflow_provider_air_executor.jobs.outputs import ShownResult, ShownResults, why_unfit
from airflow_provider_air_executor.jobs.spec import JobSpec
from airflow_provider_air_executor.remote import records
from airflow_provider_air_executor.remote.completions import RemoteCompletions
from airflow_provider_air_executor.remote.index import RemoteIndex
from airflow_provider_air_executor.remote.lease import Lease
from airflow_provider_air_executor.remote.link import Link
from airflow_provider_air_executor.remote.log import RemoteLog
from airflow_provider_air_executor.remote.records import dumped_owner, parsed, parsed_tuple
from airflow_provider_air_executor.remote.transport import url_path
from airflow_provider_air_executor.remote.watcher import RemoteWatch, Watcher


class RemoteJobs:
    """The jobs of a server.

    :param link: with which it is asked.
    :param index: its jobs at a glance.
    :param watcher: its changes.
    """

    def __init__(self, link: Link, index: RemoteIndex, watcher: Watcher) -> None:
        self._link = link
        self._index = index
        self._watcher = watcher

    def __repr__(self) -> str:
        return f"RemoteJobs({self.where!r})"

    def with_patience(self, patience: float | None) -> RemoteJobs:
        """The same jobs, over the same connections, for somebody with another patience.

        :param patience: seconds for which a request is sent again while the server is away; 0: once; None: without end.
        """
        link = Link(self._link.transport, patience)
        return RemoteJobs(link, self._index.with_link(link), self._watcher)

    @property
    def where(self) -> str:
        """The URL of the server."""
        return self._link.where

    # -- submitting and changing -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Agree with the server on the version of the protocol, unless that has been done."""
        if self._link.transport.hello is None:
            self._link.get(url_path("hello"))

    def submit(
        self,
        name: str,
        tasks: Tasks,
        *,
        submitted_by: SubmittedBy | None = None,
        secrets: Collection[str] = (),
        **spec: Unpack[JobSpec],
    ) -> Job:
        """Publish a job. The answer to a request that is sent again is that of the first one."""
        content = {
            "name": check_submitted_name(name),
            "tasks": records.dumped_tasks(tasks),
            "spec": records.dumped_spec(spec),
            "submitted_by": dumped_owner(submitted_by),
            "secrets": sorted(set(secrets)),
            "key": _word(),
        }
        return parsed(Job, self._link.send("POST", url_path("jobs"), content))

    def cancel(
        self, name: str, owner: SubmittedBy | None = None, tasks: Iterable[str] = (), *, again: bool | None = None
    ) -> bool:
        """Request that a job, or some of its tasks, are cancelled."""
        if again is None:
            again = owner is None
        if again:  # what a request means must not depend on whether it is the first one of its kind that arrives
            again = self.get_job(name).cancel_requested_at is not None
        content = {"owner": dumped_owner(owner), "tasks": _ids(tasks), "again": again}
        return bool(self._field(self._link.send("POST", _job(name, "cancel"), content), "requested"))

    def retry(self, name: str, tasks: Iterable[str] = (), *, all: bool = False) -> None:  # noqa: A002
        """Request a retry: one, since the server is told after which attempt."""
        content = {"tasks": _ids(tasks), "all": all, "attempt": self._attempt_to_retry(name)}
        self._link.send("POST", _job(name, "retry"), content)

    def _attempt_to_retry(self, name: str) -> int | None:
        """The attempt of a job that has ended; for another one, the server says what is wrong."""
        job = self.get_job(name)
        return job.attempt if job.state.is_terminal else None

    def add_tasks(self, name: str, tasks: Tasks, *, secrets: Collection[str] = ()) -> tuple[str, ...]:
        """Ask for tasks to be appended; a request that is sent again does not append them again."""
        content = {"tasks": records.dumped_tasks(tasks), "secrets": sorted(set(secrets)), "key": _word()}
        return parsed(tuple[str, ...], self._field(self._link.send("POST", _job(name, "tasks"), content), "ids"))

    def reattach(self, name: str, owner: SubmittedBy) -> None:
        """Record that this try of an Airflow task waits for the job from now on."""
        self._link.send("PUT", _job(name, "waiter"), dumped_owner(owner))

    def delete(self, name: str) -> None:
        """Remove a job that has ended: this one, and no later one of its name."""
        job_id: str | None = None
        with contextlib.suppress(CorruptFileError):
            job_id = self.get_job(name).id
        self._link.delete(_job(name), id=job_id)

    def may_change(self, job: Job) -> bool:
        """Whether this job may be changed with this token."""
        token = self._hello()["token"]
        if token["scope"] == "submit":
            return job.submitted_by is not None and getattr(job.submitted_by, "token", None) == token["name"]
        return bool(token["scope"] == "admin")

    # -- reading -----------------------------------------------------------------------------------------------

    def get_job(self, name: str) -> Job:
        """The job of this name."""
        return parsed(Job, self._field(self._link.get(_record(name)), "job"))

    def get_tasks(self, name: str, only: Collection[str] = (), *, at_once: bool = False) -> tuple[Task, ...]:
        """The tasks of a job, in the order of the list."""
        found = self._link.lines(_record(name, "tasks"), lambda task: parsed(Task, task), task=_few(only) or None)
        return tuple(task for task in found if not only or task.id in only)

    def outcomes(self, name: str) -> OutcomeCounts:
        """How many tasks of a job stand how."""
        found = self._field(self._link.get(_job(name)), "outcome_counts")
        return parsed(dict[Outcome, int], found)

    def get_attempts(self, name: str, tasks: Iterable[Task] | None = None) -> tuple[AttemptRecord, ...]:
        """The attempts of a job's tasks."""
        wanted = None if tasks is None else [task.id for task in tasks]
        if wanted is not None and not wanted:
            return ()
        few = None if wanted is None else _few(wanted)
        found = self._link.lines(
            _record(name, "attempts"), lambda attempt: parsed_tuple(AttemptRecord, attempt), task=few
        )
        return tuple(attempt for attempt in found if wanted is None or attempt.task_id in set(wanted))

    def list_jobs(self) -> Iterator[Job]:
        """All jobs that can be read, by name."""
        return iter(sorted(self._index.jobs(), key=lambda job: job.name))

    def index(self, *, ahead: bool = False) -> RemoteIndex:
        """All jobs at a glance."""
        return self._index

    def mask(self, name: str) -> Mask:
        """Nothing: the server has replaced the secrets."""
        return Mask()

    def log(self, name: str, task_id: str) -> RemoteLog:
        """The log of a task."""
        return RemoteLog(self._link, check_stored_name(name), task_id)

    def log_location(self, name: str) -> str:
        """The directory of the logs of a job on the other machine."""
        return str(self._field(self._link.get(_record(name, "log-location")), "location"))

    def new_lines(
        self, name: str, positions: Mapping[str, LinePosition], *, is_over: bool = False
    ) -> dict[str, NewLines]:
        """What the tasks have printed since some positions: one request for all of them."""
        content = {
            "positions": {task_id: position._asdict() for task_id, position in positions.items()},
            "is_over": is_over,
        }
        found = self._link.send("POST", _record(name, "new-lines"), content)
        return parsed(dict[str, NewLines], self._field(found, "lines"))

    def load_positions(self, name: str, reader: str) -> dict[str, int]:
        """The position of a reader in the logs of a job."""
        return parsed(dict[str, int], self._field(self._link.get(_record(name, "positions", reader)), "offsets"))

    def save_positions(self, name: str, reader: str, offsets: Mapping[str, int]) -> None:
        """Persist the position of a reader in the logs of a job."""
        self._link.send("PUT", _record(name, "positions", reader), {"offsets": dict(offsets)})

    def results(self, name: str, reserved: Sequence[frozenset[str]] = (), *, masked: bool = False) -> dict[str, Any]:
        """What the completed tasks of a job have handed over, by their ids."""
        keys = [",".join(sorted(each)) for each in reserved] or None
        found = self._link.get(_record(name, "results"), masked="true" if masked else None, reserved=keys)
        results = parsed(dict[str, Any], self._field(found, "results"))
        # The server, which says in which file they are, need not be an honest one.
        for task_id, value in results.items():
            why = why_unfit({task_id: value}, reserved)
            if why is not None:
                raise OutputError(name, task_id, f"it cannot be kept: {why}")
        return results

    def shown_results(self, name: str, tasks: Collection[str] = (), *, limit: int, offset: int = 0) -> ShownResults:
        """The results of the completed tasks of a job for people."""
        chosen = list(tasks) or None
        found = self._link.get(_job(name, "results"), task_id=chosen, limit=limit, offset=offset)
        shown = [
            ShownResult(each["task_id"], each["value"], each.get("problem")) for each in self._field(found, "results")
        ]
        return ShownResults(tuple(shown), int(self._field(found, "total")))

    def past_jobs(self) -> Iterator[PastJob]:
        """The jobs that were removed."""
        return iter(self._link.lines(url_path("past-jobs"), lambda past: parsed_tuple(PastJob, past)))

    def durations(self, series: str) -> list[Run]:
        """The runs of a series that have ended."""
        return self._link.lines(url_path("durations"), lambda run: parsed(Run, run), series=series)

    # -- the manager -------------------------------------------------------------------------------------------

    def manager(self) -> ManagerInfo | None:
        """The manager that runs the jobs; None if there is none."""
        return records.manager_of(self._field(self._link.get(url_path("hello")), "manager"))

    def ensure_manager(self) -> None:
        """Let the server start the manager if it is embedded and none runs.

        While the server is away there is nothing to wait for: it starts the manager itself when something is to run.
        """
        once = self.with_patience(0)
        with contextlib.suppress(JobsAwayError):
            once._keep_manager()  # noqa: SLF001

    def _keep_manager(self) -> None:
        if self._hello().get("embedded"):
            self._link.send("POST", url_path("manager", "keep-alive"), {})

    def trouble(self, name: str) -> str:
        """What is said beside the progress of a job that does not progress."""
        return str(self._field(self._link.get(url_path("trouble", check_stored_name(name))), "remark"))

    def held_up(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Why some jobs do not progress, by their names."""
        names = [job.name for job in jobs if not job.state.is_terminal]
        if not names:
            return {}
        found = self._link.send("POST", url_path("held-up"), {"names": names})
        return parsed(dict[str, str], self._field(found, "held_up"))

    def control(self) -> Control:
        """What the manager is to do."""
        found = self._link.get(url_path("control"))
        return Control(bool(self._field(found, "paused")), parsed(dict[str, int], self._field(found, "slots")))

    def set_paused(self, paused: bool) -> None:
        """Let the manager start no more tasks, or start them again."""
        self._link.send("PUT", url_path("control"), {"paused": paused})

    def set_slots(self, slots: int | None, runner: str = "local") -> None:
        """Set how many attempts a runner may have at a time."""
        self._link.send("PUT", url_path("control"), {"slots": {runner: slots}})

    def test(self) -> Reached:
        """Which server is reached, and whether its manager runs."""
        try:
            hello = self._link.get(url_path("hello"))
            info = records.manager_of(hello["manager"])
            token, version, embedded = hello["token"], hello["version"], bool(hello["embedded"])
            said = f"air-executor {version} at {self.where} serves {hello['base_path']}; {_token(token)}"
        except (AirExecutorError, OSError) as error:
            return Reached(False, str(error))
        except (KeyError, TypeError) as error:
            return Reached(False, f"{self.where} says nothing of {error}")
        if info is not None:
            free = [f"{max(0, slots.limit - slots.used)} of {slots.limit}" for slots in info.slots.values()]
            return Reached(True, f"{said}; its manager runs" + (f", {', '.join(free)} slots are free" if free else ""))
        if embedded:
            return Reached(True, f"{said}; its manager is started with the first job")
        return Reached(False, f"{said}; no manager is running there: start it with `air-executor manager`")

    # -- waiting -----------------------------------------------------------------------------------------------

    def wait(self, name: str, timeout: float) -> bool:
        """Wait in this thread until a job may have changed since the last look at it."""
        return self._watcher.wait(check_stored_name(name), timeout)

    def watching(self, name: str, *, interval: float) -> AbstractAsyncContextManager[RemoteWatch]:
        """Watch a job, which need not exist yet, by the one stream of changes that this process has."""
        return self._watcher.watching(check_stored_name(name))

    def completions(
        self, subscriber: str, wanted: JobFilter, *, interval: float, formerly: str = ""
    ) -> RemoteCompletions:
        """The ends of jobs for a subscriber."""
        return RemoteCompletions(self._link, subscriber, wanted, formerly=formerly)

    def only_one(self, what: str) -> AbstractContextManager[None]:
        """Let one process after the other do what is within, by a lease of the server."""
        return Lease(self._link, what)

    def close(self) -> None:
        """Close the connections that nobody uses, and end the stream of changes; the next call begins anew."""
        self._watcher.close()
        self._link.transport.close()

    def _hello(self) -> dict[str, Any]:
        self.prepare()
        return self._link.transport.hello or {}

    def _field(self, content: Any, name: str) -> Any:
        """A field of an answer."""
        try:
            return content[name]
        except (KeyError, TypeError):
            raise ProtocolError(f"{self.where} has sent an answer without {name!r}") from None


_SHORT = 4_000  # characters of ids that are sent in a URL


def _few(ids: Collection[str]) -> list[str] | None:
    """The ids of tasks, if they are few: a URL has no room for more."""
    return list(ids) if sum(map(len, ids)) < _SHORT else None


def _job(name: str, *more: str) -> str:
    return url_path("jobs", check_stored_name(name), *more)


def _record(name: str, *more: str) -> str:
    return url_path("records", check_stored_name(name), *more)


def _ids(tasks: Iterable[str]) -> list[str]:
    return [tasks] if isinstance(tasks, str) else list(tasks)


def _word() -> str:
    """A word that no other request has."""
    return os.urandom(16).hex()


def _token(token: Mapping[str, Any]) -> str:
    if token["name"] == "unix":
        return "by its Unix socket"
    expires = f", until {token['expires_at']}" if token.get("expires_at") else ""
    return f"token {token['name']!r} (scope {token['scope']}{expires})"
