"""Any order of submit, cancel, retry, crash, fault and recovery keeps the promises.

The manager is driven tick by tick with an engine that a test steers, so that thousands of orders are tried. Its
clock stands still in between, so that an order does the same again. What is drawn does not depend on the manager:
numbers are drawn, and stand for one of what is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from airflow_provider_air_executor.engines import registry
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.exceptions import JobStateError
from airflow_provider_air_executor.jobs import files, inbox, models
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, RunIf, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager import (
    active_job,
    job_files,
    recovery,
    requests,
    schedule,
    turns,
)
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.manager.settings import Settings
from tests.support.machine import Machine, MachineEngine

LIMIT = 3
NUMBERS = st.integers(0, 1000)

T = TypeVar("T")


def one_of(items: Sequence[T], number: int) -> T:
    """The item that a number stands for."""
    return items[number % len(items)]


class Clock:
    """A clock that stands still until somebody moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds that have passed, which are those that somebody has let pass."""
        return self.now

    def time_ns(self) -> int:
        """Never long after a directory was changed."""
        return 0


class Promises(RuleBasedStateMachine):
    """What users, tasks and misfortune may do, in any order."""

    ticks = 100  # in which all must have come to its end
    poll_interval = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.store = JobStore(self.directory)
        self.machine = Machine()
        self.added = 0
        self.conditional: set[tuple[str, str]] = set()  # tasks that may run again when another one does
        self.retried_in_part: set[str] = set()  # jobs of which single tasks were retried, whatever had become of them
        self.clock = Clock()
        self.start_manager()

    def start_manager(self) -> None:
        self.engine = MachineEngine(self.machine, self.store)
        settings_ = Settings(poll_interval=self.poll_interval, max_concurrent_runners=LIMIT, kill_grace=0)
        engines = Engines(self.store, settings_, self.engine)
        self.manager = Manager(self.store, settings_, engines, self.clock)
        self.manager.recover()

    def teardown(self) -> None:
        """Everything that still runs ends well: then every job must end, and as it should."""
        try:
            self.let_all_end()
        finally:
            self.manager.close()
            shutil.rmtree(self.directory)

    def let_all_end(self) -> None:
        for _ in range(self.ticks):  # after a fault, the manager tries again in a second
            for key in list(self.machine.running):
                self.end(key, 0)
            self.clock.now += 0.1
            self.manager.tick()
            if not inbox.requests(self.store) and all(job.state.is_terminal for job in self.store.list_jobs()):
                break
        for job in self.store.list_jobs():
            tasks = self.store.get_tasks(job.name)
            assert job.state.is_terminal, f"{job} hangs: {tasks}"
            assert (job.state is JobState.COMPLETED) == all(task.status is TaskStatus.COMPLETED for task in tasks)
            for task in tasks:
                self.check_end(job, task, {other.id: other for other in tasks})

    def check_end(self, job: Job, task: Task, tasks: Mapping[str, Task]) -> None:
        """A task has ended as the ends of those say that it depends on."""
        before = [tasks[name].status for name in task.dependencies]
        any_failed = TaskStatus.FAILED in before
        has_run = task.attempt > task.attempts_before
        said = f"{task} after {before}"
        assert task.status.is_terminal, said
        assert (task.reason is Reason.DEPENDENCY) <= (any_failed and task.run_if is None), said
        assert (task.reason is Reason.SKIPPED) <= (
            task.run_if is RunIf.ANY_FAILED and not any_failed and not has_run and task.status is TaskStatus.COMPLETED
        ), said
        assert (task.run_if is RunIf.ANY_FAILED and has_run) <= any_failed, said
        if job.name in self.retried_in_part:  # other tasks are as they were
            return
        assert (task.status is TaskStatus.COMPLETED) <= (not any_failed or task.run_if is not None), said
        if task.cancel_requested_at is not None:
            assert task.status is TaskStatus.COMPLETED or task.reason is Reason.CANCELLED, said
        elif task.run_if is RunIf.ALWAYS and job.cancel_again_requested_at is None:
            assert has_run, said
        elif task.run_if is not None and job.cancel_requested_at is None:
            assert has_run or task.reason is Reason.SKIPPED, said

    def end(self, key: tuple[str, str, int], code: int | None) -> None:
        del self.machine.running[key]
        self.machine.ended[key] = code

    @rule(data=st.data(), parallel=st.integers(1, 3))
    def submit(self, data: Any, parallel: int) -> None:
        name = f"j{len(self.store.job_names())}"
        names = [f"t{place}" for place in range(data.draw(st.integers(1, 4)))]
        tasks = [
            {
                "id": task,
                "command": "x",
                "dependencies": data.draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else [],
                "retries": data.draw(st.integers(0, 1)),
            }
            for place, task in enumerate(names)
        ]
        for task in tasks:
            if task["dependencies"]:
                task["run_if"] = data.draw(st.sampled_from([None, None, *RunIf]))
            self.note_conditions(name, task)
        self.store.submit(name, tasks, max_parallel_tasks=parallel)

    def note_conditions(self, job_name: str, task: Mapping[str, Any]) -> None:
        follows = any((job_name, name) in self.conditional for name in task["dependencies"])
        if task.get("run_if") is not None or follows:
            self.conditional.add((job_name, task["id"]))

    @rule(seconds=st.sampled_from([0, 0.001, 0.01, 0.3, 1.1]))
    def tick(self, seconds: float) -> None:
        self.clock.now += seconds
        self.manager.tick()

    @rule(number=NUMBERS, code=st.sampled_from([0, 0, 0, 1, 137, None]))
    def task_ends(self, number: int, code: int | None) -> None:
        if self.machine.running:
            self.end(one_of(sorted(self.machine.running), number), code)

    @rule()
    def manager_is_killed(self) -> None:
        """Nothing is written down any more; the tasks go on."""
        self.manager.shared.notifier.close()
        self.start_manager()

    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        if names := self.store.job_names():
            inbox.cancel(self.store, one_of(names, number))

    @rule(number=NUMBERS)
    def retry(self, number: int) -> None:
        if names := self.store.job_names():
            with contextlib.suppress(JobStateError):
                inbox.retry(self.store, one_of(names, number))

    @rule(number=NUMBERS, which=NUMBERS)
    def retry_a_task(self, number: int, which: int) -> None:
        if names := self.store.job_names():
            name = one_of(names, number)
            task = one_of(self.store.get_tasks(name), which)
            with contextlib.suppress(JobStateError):
                inbox.retry(self.store, name, [task.id])
                self.retried_in_part.add(name)
                self.conditional.add((name, task.id))

    @rule(number=NUMBERS)
    def retry_all(self, number: int) -> None:
        if names := self.store.job_names():
            name = one_of(names, number)
            with contextlib.suppress(JobStateError):
                inbox.retry(self.store, name, all=True)
                self.conditional |= {(name, task.id) for task in self.store.get_tasks(name)}

    @rule(number=NUMBERS, which=NUMBERS)
    def cancel_a_task(self, number: int, which: int) -> None:
        if names := self.store.job_names():
            name = one_of(names, number)
            task_id = one_of(self.store.get_tasks(name), which).id
            if inbox.cancel(self.store, name, tasks=[task_id]):
                self.conditional.add((name, task_id))  # it is cancelled even if it ends well in this moment

    @rule(number=NUMBERS)
    def a_request_is_made_again(self, number: int) -> None:
        """As if it had been carried out, and its manager killed before it was removed."""
        found = inbox.requests(self.store)
        if found:
            path = one_of(found, number)
            path.with_name(f"{path.stem}-again.json").write_bytes(path.read_bytes())

    @rule(number=NUMBERS, run_if=st.sampled_from([None, None, *RunIf]))
    def add_task(self, number: int, run_if: RunIf | None = None) -> None:
        if names := self.store.job_names():
            self.added += 1
            name = one_of(names, number)
            after = [self.store.get_tasks(name)[0].id]
            task = {"id": f"a{self.added}", "command": "x", "dependencies": after, "run_if": run_if}
            self.note_conditions(name, task)
            with contextlib.suppress(JobStateError):
                inbox.add_tasks(self.store, name, [task])

    @rule(number=st.integers(1, 3), error=st.sampled_from([errno.ENOSPC, errno.EIO, errno.ESTALE]))
    def a_write_fails(self, number: int, error: int) -> None:
        """The Nth write from now on fails, in the midst of a tick, or the manager is killed there."""
        real, left = files.writing_beside, [number]

        def failing(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        files.writing_beside = failing
        try:
            self.manager.tick()
        finally:
            files.writing_beside = real

    @rule(number=st.integers(1, 4))
    def manager_is_killed_at_a_write(self, number: int) -> None:
        real, left = files.writing_beside, [number]

        class Killed(BaseException):
            pass

        def failing(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*args, **kwargs)

        files.writing_beside = failing
        try:
            self.manager.tick()
        except Killed:
            self.manager.shared.notifier.close()
        finally:
            files.writing_beside = real
        if left[0] <= 0:
            self.start_manager()

    @invariant()
    def no_more_run_than_allowed(self) -> None:
        assert len(self.machine.running) <= LIMIT

    @invariant()
    def what_has_completed_is_never_run_again(self) -> None:
        completed = {key[:2] for key, code in self.machine.ended.items() if code == 0}
        completed -= self.conditional
        assert not completed & {key[:2] for key in self.machine.running}

    @invariant()
    def completed_is_said_only_of_what_has_completed(self) -> None:
        done = {key[:2] for key, code in self.machine.ended.items() if code == 0}
        skipped = {
            (job.name, task.id)
            for job in self.store.list_jobs()
            for task in self.store.get_tasks(job.name)
            if task.reason is Reason.SKIPPED and task.run_if is RunIf.ANY_FAILED
        }
        done |= skipped
        asked = {inbox.load_request(path).job for path in inbox.requests(self.store)}
        for job in self.store.list_jobs():
            tasks = self.store.get_tasks(job.name)
            for task in tasks:
                if task.status is TaskStatus.COMPLETED:
                    assert (job.name, task.id) in done
            # Tasks that are added to what has completed come into its list before it is waiting again.
            if job.state is JobState.COMPLETED and job.name not in asked:
                assert all((job.name, task.id) in done for task in tasks)


class PromisesInPieces(Promises):
    """The same where each step on a job is cut in the smallest pieces, and anything may happen in between."""

    ticks = 1000

    def __init__(self) -> None:
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(turns, "_SECONDS", -1.0)
        for module in (models, active_job, job_files, recovery, requests, registry, schedule):
            self.patches.setattr(module, "ITEMS", 1)
        super().__init__()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.patches.undo()


def test_tasks_that_were_added_too_late_run_although_their_job_cannot_be_written_for_a_while() -> None:
    """It has completed until then, with what is to come in its list; the request is carried out once it can be."""
    promises = Promises()
    promises.store.submit("j0", [{"id": "t0", "command": "x"}])
    for _ in range(3):
        promises.tick(0.1)
    inbox.add_tasks(promises.store, "j0", [{"id": "a1", "command": "x"}])
    promises.a_write_fails(1, errno.ENOSPC)
    promises.end(next(iter(promises.machine.running)), 0)
    for _ in range(3):
        promises.tick(0)
    assert promises.store.get_job("j0").state is JobState.COMPLETED
    promises.clock.now += 0.3
    promises.a_write_fails(2, errno.ENOSPC)  # that of the state, after that of the list
    assert promises.store.get_job("j0").state is JobState.COMPLETED
    assert [task.status for task in promises.store.get_tasks("j0")] == [TaskStatus.COMPLETED, TaskStatus.PENDING]
    promises.completed_is_said_only_of_what_has_completed()
    promises.teardown()
    assert sorted(promises.machine.history) == [("j0", "a1", 1), ("j0", "t0", 1)]


def test_what_an_earlier_manager_has_started_counts_before_its_job_is_loaded() -> None:
    """A job of many tasks takes longer to load than another one, whose tasks must not take its place meanwhile."""
    promises = PromisesInPieces()
    tasks = [{"id": f"t{number}", "command": "x"} for number in range(60)]
    promises.store.submit("j0", tasks, max_parallel_tasks=LIMIT)
    while len(promises.machine.running) < LIMIT:
        promises.tick(0.1)
    promises.store.submit("j1", [{"id": "t0", "command": "x"}], priority=1)
    promises.manager_is_killed()
    for _ in range(200):
        promises.tick(0)
        promises.no_more_run_than_allowed()
    promises.teardown()
    assert len(promises.machine.history) == 61


@pytest.mark.parametrize("code", [0, 1])
def test_an_attempt_before_a_retry_does_not_count_whatever_the_clock_of_its_file_says(code: int) -> None:
    """It may be some milliseconds behind, or ahead, and another manager may carry out the retry."""
    promises = Promises()
    promises.store.submit("j0", [{"id": "t0", "command": "x"}])
    while not promises.machine.running:
        promises.tick(0.1)
    promises.end(("j0", "t0", 1), code)
    while not promises.store.get_job("j0").state.is_terminal:
        promises.tick(0.1)
    later = time.time() + 1000
    os.utime(promises.store.paths("j0").record("t0", 1), (later, later))
    inbox.retry(promises.store, "j0", all=True)
    promises.manager_is_killed()
    for _ in range(3):
        promises.tick(0.1)
    assert list(promises.machine.running) == [("j0", "t0", 2)]
    promises.conditional.add(("j0", "t0"))
    promises.teardown()


class Unhurried(Promises):
    """The same where a slow pass is far away, so that each thing must be woken for."""

    poll_interval = 3600


def test_an_end_that_could_not_be_written_is_written_a_second_later() -> None:
    """Also if the manager has had something else to do meanwhile."""
    promises = Unhurried()
    promises.store.submit("j0", [{"id": "t0", "command": "x"}])
    while not promises.machine.running:
        promises.tick(0.1)
    promises.end(next(iter(promises.machine.running)), 0)
    promises.a_write_fails(1, errno.ENOSPC)
    assert not promises.store.get_job("j0").state.is_terminal
    for _ in range(4):
        promises.tick(0.3)
    assert promises.store.get_job("j0").state is JobState.COMPLETED
    promises.teardown()


def test_a_list_that_was_half_written_is_read_again_soon() -> None:
    """Also if the manager has had something else to do meanwhile."""
    promises = Unhurried()
    promises.store.submit("j0", [{"id": "t0", "command": "x"}])
    for _ in range(10):
        promises.tick(0.1)
    path = promises.store.paths("j0").tasks
    written = path.read_bytes()
    with path.open("r+b", buffering=0) as file:  # nothing tells of a change as long as it is open
        file.truncate(20)
        promises.manager.changes._intake.inspect("j0")
        promises.tick(0)
        (job,) = promises.manager.shared.jobs.active.values()
        assert job.on_disk.unreadable_since is not None
        file.write(written)
        promises.tick(0.01)
        promises.tick(0.05)
        assert job.on_disk.unreadable_since is None
    promises.teardown()


def test_a_job_that_is_removed_while_its_attempts_are_reattached_harms_no_other() -> None:
    class UnhurriedInPieces(PromisesInPieces):
        poll_interval = 3600

    promises = UnhurriedInPieces()
    tasks = [{"id": f"t{number}", "command": "x"} for number in range(20)]
    promises.store.submit("j0", tasks, max_parallel_tasks=LIMIT)
    while len(promises.machine.history) < len(tasks) - 1:
        promises.tick(0.1)
        if len(promises.machine.running) == LIMIT:
            promises.end(next(iter(promises.machine.running)), 1)
    promises.manager_is_killed()
    jobs = promises.manager.shared.jobs
    while "j0" not in jobs.active:
        promises.tick(0)
    assert jobs.active["j0"].holds
    shutil.rmtree(promises.store.paths("j0").directory.rename(f"{promises.directory}/away"))
    promises.store.submit("j1", [{"id": "t0", "command": "x"}])
    for _ in range(20):
        promises.tick(0)
    assert [key[:2] for key in promises.machine.running] == [("j1", "t0")]
    assert "j0" not in jobs.active
    promises.teardown()


TestPromises = Promises.TestCase
TestPromisesInPieces = PromisesInPieces.TestCase
TestPromises.settings = TestPromisesInPieces.settings = settings(
    stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
