"""Any order of submit, cancel, retry, crash, fault and recovery keeps the promises.

The manager is driven tick by tick with a runner that does what it is told, so that thousands of orders are tried.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import time
from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from airflow_provider_air_executor.exceptions import JobStateError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import JobState, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.manager.runners.local import Attempt, Ended, Running
from airflow_provider_air_executor.manager.settings import Settings

LIMIT = 3


class Machine:
    """Runs attempts by writing down that they run; survives the manager, as real runners do."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, str, int], datetime] = {}
        self.ended: dict[tuple[str, str, int], int | None] = {}
        self.history: list[tuple[str, str, int]] = []


class Runner:
    """The runner of one manager on that machine."""

    poll_after = None

    def __init__(self, machine: Machine, store: JobStore) -> None:
        self.machine = machine
        self.store = store
        self.known: dict[tuple[str, str, int], Attempt] = {}

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        key = attempt[:3]
        assert key not in self.machine.ended, "an attempt is made twice"
        assert key not in self.machine.running, "an attempt runs twice at the same time"
        self.store.run_path(*key).write_text("x")
        self.machine.running[key] = started_at
        self.machine.history.append(key)
        self.known[key] = attempt

    def poll(self) -> list[Ended]:
        over = [key for key in self.known if key in self.machine.ended]
        return [Ended(self.known.pop(key), self.machine.ended[key], utc_now()) for key in over]

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        key = attempt[:3]
        if key in self.machine.ended:
            return Ended(attempt, self.machine.ended[key], utc_now())
        if key in self.machine.running:
            self.known[key] = attempt
            return Running(attempt, self.machine.running[key])
        return None

    def signal(self, attempt: Attempt, number: signal.Signals) -> None:
        self.machine.running.pop(attempt[:3], None)
        self.machine.ended.setdefault(attempt[:3], 143)

    def kill_recorded(self, attempt: Attempt) -> None:
        """Nothing outlives an attempt here."""

    def disown(self, attempt: Attempt) -> None:
        """No job is removed here."""


class Promises(RuleBasedStateMachine):
    """What users, tasks and misfortune may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.store = JobStore(self.directory)
        self.machine = Machine()
        self.start_manager()

    def start_manager(self) -> None:
        self.runner = Runner(self.machine, self.store)
        settings_ = Settings(poll_interval=0.05, max_concurrent_runners=LIMIT, kill_grace=0)
        self.manager = Manager(self.store, settings_, self.runner)  # type: ignore[arg-type]
        self.manager.recover()

    def teardown(self) -> None:
        """Everything that still runs ends well: then every job must end, and as it should."""
        give_up = time.monotonic() + 10  # after a fault, the manager tries again in a second
        while time.monotonic() < give_up:
            for key in list(self.machine.running):
                self.end(key, 0)
            self.manager.tick()
            if not self.store.requests() and all(job.state.is_terminal for job in self.store.list_jobs()):
                break
        for job in self.store.list_jobs():
            tasks = self.store.get_tasks(job.name)
            assert job.state.is_terminal, f"{job} hangs: {tasks}"
            assert (job.state is JobState.COMPLETED) == all(task.status is TaskStatus.COMPLETED for task in tasks)
        self.manager.close()
        shutil.rmtree(self.directory)

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
        self.store.submit(name, tasks, max_parallel_tasks=parallel)

    @rule()
    def tick(self) -> None:
        self.manager.tick()

    @precondition(lambda self: self.machine.running)
    @rule(data=st.data(), code=st.sampled_from([0, 0, 0, 1, 137, None]))
    def task_ends(self, data: Any, code: int | None) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.machine.running))), code)

    @rule()
    def manager_is_killed(self) -> None:
        """Nothing is written down any more; the tasks go on."""
        self.manager._notifier.close()
        self.start_manager()

    @precondition(lambda self: self.store.job_names())
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self.store.cancel(data.draw(st.sampled_from(self.store.job_names())))

    @precondition(lambda self: self.store.job_names())
    @rule(data=st.data())
    def retry(self, data: Any) -> None:
        try:
            self.store.retry(data.draw(st.sampled_from(self.store.job_names())))
        except JobStateError:
            return

    @precondition(lambda self: self.store.job_names())
    @rule(data=st.data())
    def add_task(self, data: Any) -> None:
        name = data.draw(st.sampled_from(self.store.job_names()))
        try:
            self.store.add_tasks(name, [{"command": "x", "dependencies": [self.store.get_tasks(name)[0].id]}])
        except JobStateError:
            return

    @rule(number=st.integers(1, 3), error=st.sampled_from([errno.ENOSPC, errno.EIO, errno.ESTALE]))
    def a_write_fails(self, number: int, error: int) -> None:
        """The Nth write from now on fails, in the midst of a tick, or the manager is killed there."""
        real, left = files.write_beside, [number]

        def failing(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        files.write_beside = failing
        try:
            self.manager.tick()
        finally:
            files.write_beside = real

    @rule(number=st.integers(1, 4))
    def manager_is_killed_at_a_write(self, number: int) -> None:
        real, left = files.write_beside, [number]

        class Killed(BaseException):
            pass

        def failing(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*args, **kwargs)

        files.write_beside = failing
        try:
            self.manager.tick()
        except Killed:
            self.manager._notifier.close()
        finally:
            files.write_beside = real
        if left[0] <= 0:
            self.start_manager()

    @invariant()
    def no_more_run_than_allowed(self) -> None:
        assert len(self.machine.running) <= LIMIT

    @invariant()
    def what_has_completed_is_never_run_again(self) -> None:
        completed = {key[:2] for key, code in self.machine.ended.items() if code == 0}
        assert not completed & {key[:2] for key in self.machine.running}

    @invariant()
    def completed_is_said_only_of_what_has_completed(self) -> None:
        done = {key[:2] for key, code in self.machine.ended.items() if code == 0}
        for job in self.store.list_jobs():
            tasks = self.store.get_tasks(job.name)
            for task in tasks:
                if task.status is TaskStatus.COMPLETED:
                    assert (job.name, task.id) in done
            if job.state is JobState.COMPLETED:
                assert all((job.name, task.id) in done for task in tasks)


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
