"""The requests of the inbox: each is read, carried out, and removed, as often as it takes."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from airflow_provider_air_executor.exceptions import AirExecutorError, CorruptFileError, InvalidJobError
from airflow_provider_air_executor.jobs import inbox, models
from airflow_provider_air_executor.jobs.inbox import Action, Request
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, utc_now
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping
from airflow_provider_air_executor.manager.active_job import ActiveJob, Hold
from airflow_provider_air_executor.manager.intake import Intake
from airflow_provider_air_executor.manager.limits import Limits, cancelled
from airflow_provider_air_executor.manager.recovery import Recovery
from airflow_provider_air_executor.manager.rejection import Rejection
from airflow_provider_air_executor.manager.schedule import resetting
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.timers import Backoff
from airflow_provider_air_executor.manager.troubles import Step

log = logging.getLogger("air_executor.manager")

_INBOX = "/inbox"  # before the keys of work on requests; no job can be called so
# Why a job may have failed that can get more tasks.
_REOPENED = (None, Reason.EXIT, Reason.SIGNAL, Reason.DEPENDENCY, Reason.LOST, Reason.SPAWN)


class Requests:
    """Has the requests of the inbox carried out."""

    def __init__(self, shared: Shared, intake: Intake, handler: RequestHandler) -> None:
        self._store, self._writer, self._jobs = shared.store, shared.writer, shared.jobs
        self._troubles, self._turns, self._guard = shared.troubles, shared.turns, shared.guard
        self._intake, self._handler = intake, handler
        self.may_be_there = False  # whether the inbox is to be read
        self._in_work: dict[str, str] = {}  # requests that are being carried out, and their jobs
        self._answered: dict[str, str] = {}  # requests that are carried out and could not be removed, and their jobs
        self._backoff = Backoff(shared.timers)

    def answer(self) -> None:
        """Read the inbox if there may be requests, and carry them out.

        :raises OSError: if it cannot be read now.
        """
        if not self.may_be_there:
            return
        is_open = False
        for path in inbox.requests(self._store):
            if not self._is_in_work(path):
                self._turns.do(f"{_INBOX}/{path.name}", self._reading(path))
            is_open = is_open or self._backoff.is_waiting or self._is_in_work(path)
        if not is_open:
            self._backoff.reset()
            self._troubles.over_everywhere(Step.REQUEST)
        self.may_be_there = False

    def _is_in_work(self, path: Path) -> bool:
        """Whether a request is being read or carried out, so that its outcome is not known yet."""
        return self._turns.is_busy(f"{_INBOX}/{path.name}") or self._turns.is_busy(self._in_work.get(path.name, ""))

    def _reading(self, path: Path) -> Pieces[None]:
        """Read a request, and begin to carry it out."""
        name, request = self._answered.get(path.name, path.name), None
        try:
            if path.name not in self._answered:
                request = yield from inbox.loading_request(path)
                name = request.job
                if name not in self._jobs.active:
                    self._intake.inspect(name)
        except FileNotFoundError:  # it was withdrawn
            return
        except Exception as error:  # noqa: BLE001 - see Guard.run_for
            self._not_answered(path, name, error)
        else:
            self._in_work[path.name] = name
            self._turns.do(name, self._answering(path, name, request))

    def _answering(self, path: Path, name: str, request: Request | None) -> Pieces[None]:
        """Carry out a request, and remove it.

        :param request: None if it has been carried out already.
        """
        try:
            if request is not None:
                yield from self._handler.handling(request)
                self._answered[path.name] = name
                if isinstance(request.tasks, list):
                    yield from dropping(request.tasks)
            path.unlink(missing_ok=True)
            del self._answered[path.name]
        except Exception as error:  # noqa: BLE001 - see Guard.run_for
            self._not_answered(path, name, error)
        finally:
            self._in_work.pop(path.name, None)

    def _not_answered(self, path: Path, name: str, error: Exception) -> None:
        """A request could not be carried out, now or at all."""
        if isinstance(error, OSError):
            self._try_again(name, error)
            return
        if not isinstance(error, AirExecutorError) and name in self._jobs.active:
            self._guard.fail_job(name, error)
        log.warning("request %s is quarantined: %r", path.name, error)
        try:
            self._writer.quarantine(path)
        except OSError as problem:
            self._try_again(name, problem)

    def _try_again(self, name: str, error: OSError) -> None:
        self._troubles.met(name, Step.REQUEST, error)
        self._backoff.retry(self._answer_again)

    def _answer_again(self) -> None:
        self.may_be_there = True
        self._guard.run(self.answer)


class RequestHandler:
    """Does what requests ask: jobs are cancelled, retried, and get more tasks."""

    def __init__(
        self, shared: Shared, limits: Limits, recovery: Recovery, intake: Intake, rejection: Rejection
    ) -> None:
        self._store, self._writer, self._files = shared.store, shared.writer, shared.files
        self._jobs, self._queue = shared.jobs, shared.queue
        self._limits, self._recovery, self._intake, self._rejection = limits, recovery, intake, rejection

    def handling(self, request: Request) -> Pieces[None]:
        """Carry out a request. It may be the second time, if a manager was killed in between.

        :raises OSError: if it must be tried again.
        :raises AirExecutorError: if it cannot be carried out at all.
        """
        job = self._jobs.active.get(request.job)
        stored = job.job if job is not None else self._store.load_job(request.job)[0]
        if not inbox.may_cancel(self._store.paths(request.job), stored, request.owner):
            log.info("job %s is not cancelled: it does not belong to %s any more", request.job, request.owner)
        elif job is None and not stored.state.is_terminal:  # its tasks may run
            raise BlockingIOError(errno.EAGAIN, "the job could not be loaded yet")
        elif job is None:
            if request.request is Action.RETRY:
                yield from self._retrying(stored, request)
            elif request.request is Action.ADD_TASKS:
                yield from self._adding_late(stored, request.tasks)
        elif request.request is Action.CANCEL and request.task_ids:
            yield from self._cancelling_tasks(job, request.task_ids)
        elif request.request is Action.CANCEL:
            job.begin_to_work()
            again = request.again and job.job.cancel_requested_at is not None
            job.change_state(**{"cancel_again_requested_at" if again else "cancel_requested_at": utc_now()})
            self._files.publish_state(job)
            self._limits.stop_job(job, cancelled(again=again))
        elif request.request is Action.ADD_TASKS:
            yield from self._adding_tasks(job, request.tasks)

    def _cancelling_tasks(self, job: ActiveJob, task_ids: Iterable[str]) -> Pieces[None]:
        _refuse_half_written(job)
        job.begin_to_work()  # a list in which some have failed is not that of a waiting job
        job.holds.add(Hold.CANCEL_TASKS)  # until it is published: if it cannot be now, this is done again
        now, found = utc_now(), {task_id for task_id in task_ids if task_id in job.tasks}
        for task_id in found:
            yield from job.cancel_task(task_id, now)
        self._limits.cancel_tasks(job, found & {attempt.task_id for attempt in job.ahead})  # before they begin
        yield from self._files.snapshotting(job)
        job.holds.discard(Hold.CANCEL_TASKS)
        self._limits.cancel_tasks(job, found)
        self._queue.add(job)
        self._jobs.touched.add(job.name)

    def _adding_tasks(self, job: ActiveJob, tasks: Iterable[Task]) -> Pieces[None]:
        _refuse_half_written(job)
        added = yield from _not_there_yet(tasks, job.tasks)
        job.holds.add(Hold.ADD_TASKS)
        try:
            if added:
                yield from job.adding(added)
            try:
                yield from self._files.snapshotting(job)
            except BaseException:
                job.withdraw(added)
                raise
        finally:
            job.holds.discard(Hold.ADD_TASKS)
        self._queue.add(job)
        self._jobs.touched.add(job.name)
        yield from dropping(added)

    def _adding_late(self, job: Job, added: Sequence[Task]) -> Pieces[None]:
        """Run a job that has ended again, with tasks that were added too late."""
        if not added:
            return
        tasks = yield from self._loading_tasks(job)
        if tasks is None:
            return
        if job.reason not in _REOPENED:
            raise InvalidJobError(f"job {job.name} has ended ({job.reason}) and takes no more tasks")
        added = yield from _not_there_yet(added, {task.id: task for task in tasks})
        yield from models.checking_ids(added)
        tasks += added
        yield from models.checking_task_list(tasks)
        if not all(task.status.is_terminal for task in tasks):
            yield from self._reopening(job, tasks, keep_failed=False)

    def _retrying(self, job: Job, request: Request) -> Pieces[None]:
        """Run a job that has ended again: what failed, the chosen tasks, or all."""
        if request.attempt not in (None, job.attempt):
            log.info("job %s has been retried already, since that was requested", job.name)
            return
        if job.state is not JobState.FAILED and not request.all and not request.task_ids:
            return
        tasks = yield from self._loading_tasks(job)
        if tasks is None:
            return
        chosen = {task.id for task in tasks} if request.all else set(request.task_ids) or None
        again = yield from resetting(tasks, chosen)
        yield from dropping(tasks)
        if not all(task.status.is_terminal for task in again):
            yield from self._reopening(job, again, keep_failed=chosen is not None)

    def _loading_tasks(self, job: Job) -> Pieces[list[Task] | None]:
        """The tasks of a job that has ended; None if they cannot be read, and the job says so."""
        try:
            tasks, _ = yield from self._store.loading_task_list(job.name, self._store.paths(job.name).tasks)
        except CorruptFileError as error:
            self._rejection.reject(job, str(error))
            return None
        return tasks

    def _reopening(self, job: Job, tasks: list[Task], *, keep_failed: bool) -> Pieces[None]:
        """Publish the tasks of a job that has ended, and let it wait for its next start.

        :param keep_failed: whether those that have failed stay so.
        """
        yield from self._recovery.dropping_outdated(job.name)
        yield from self._writer.resetting_tasks(job.name, tasks)
        yield from dropping(tasks)
        waiting = job.evolve(
            state=JobState.WAITING,
            updated_at=utc_now(),
            keep_failed=keep_failed,
            **dict.fromkeys(("started_at", "cancel_requested_at", "cancel_again_requested_at", "reason", "error")),
        )
        self._writer.write_job(waiting, durable=True)
        yield from self._intake.inspecting(job.name, self._store.paths(job.name).state, is_settled=True)


def _refuse_half_written(job: ActiveJob) -> None:
    """Do not write over the list of a job while another process writes it.

    :raises BlockingIOError: if one does.
    """
    if job.on_disk.unreadable_since is not None:
        raise BlockingIOError(errno.EAGAIN, "another process is writing tasks.json")


def _not_there_yet(tasks: Iterable[Task], present: Mapping[str, Task]) -> Pieces[list[Task]]:
    """The tasks without those that have been added before, by the same request.

    :raises InvalidJobError: if another task has the id of one.
    """
    added = []
    for number, task in enumerate(tasks, 1):
        if not number % ITEMS:
            yield False
        there = present.get(task.id)
        if there is None:
            added.append(task)
        elif (there.command, there.args, there.dependencies) != (task.command, task.args, task.dependencies):
            raise InvalidJobError(f"task id {task.id!r} is taken by another task of this job")
    return added
