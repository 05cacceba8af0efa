"""Whatever a call of the system fails with: when that is over, nothing is lost, and nothing has run twice.

A manager in this process runs real commands. For a while one call of one module fails, whenever it is made.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError, JobStateError
from airflow_provider_air_executor.jobs import files, inbox, manager_status
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.models import JobState, Reason, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import read_log
from tests.support.stepped_manager import SteppedManager
from tests.support.system_calls import CALLS, Trouble

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))  # make test-errno
NUMBERS = st.integers(0, 1_000_000)


@functools.cache
def calls() -> list[tuple[str, str, int]]:
    """The calls that a manager and its readers make: module, call, and what it can fail with."""
    stepped = SteppedManager()
    try:
        stepped.start_manager()
        for name in ("a", "b"):
            stepped.submit(
                name, [{"id": "t", **stepped.command(waits=True)}, {"id": "u", **stepped.command(waits=False)}], 1
            )
        for rounds in range(40):
            if rounds == 10:
                stepped.kill_manager()
            if rounds == 15:
                with stepped.faults.on():
                    inbox.add_tasks(stepped.store, "a", ["true"])
                    inbox.cancel(stepped.store, "b")
            with stepped.faults.on():
                read_all(stepped.store)
            stepped.clock.passed += 1.0
            stepped.go_round()
            if rounds > 20:
                stepped.open_gate()
            time.sleep(0.005)
    finally:
        stepped.close()
    return sorted((module, call, error) for module, call in stepped.faults.seen for error in CALLS[call])


def read_all(store: JobStore) -> None:
    """What a page and a command line read of all jobs."""
    names = set(store.job_names())
    for name in names:
        with contextlib.suppress(OSError):
            try:
                store.load_job(name)
                for task in store.load_tasks(name)[0]:
                    read_log(store, name, task.id)
                store.get_attempts(name)
            except JobNotFoundError:
                raise AssertionError(f"{name} is said not to exist") from None
    with contextlib.suppress(OSError):
        list(store.list_jobs())
        JobIndex(store).jobs()
        manager_status.problems(store)
        manager_status.pid(store)


class Misfortune(RuleBasedStateMachine):
    """What users do, and what goes wrong meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = calls()
        self.open_before = set(os.listdir("/proc/self/fd"))
        self.stepped = SteppedManager()
        self.store = self.stepped.store
        self.jobs = 0
        self.added = 0
        self.troubles: list[Trouble] = []
        self.is_cancelled: set[str] = set()
        self.stepped.start_manager()

    def teardown(self) -> None:
        try:
            self.trouble_is_over()
            self.let_all_end()
            self.check_what_ran()
            self.check_lines()
        except BaseException as error:
            error.add_note(f"troubles: {self.troubles}")
            error.add_note("\n".join(self.stepped.lines.lines))
            raise
        finally:
            self.stepped.close()
        left = set(os.listdir("/proc/self/fd"))
        assert len(left) <= len(self.open_before), f"descriptors are left open: {left - self.open_before}"

    # -- what happens --------------------------------------------------------------------------------------

    @rule(waits=st.lists(st.booleans(), min_size=1, max_size=3), chain=st.booleans(), parallel=st.integers(1, 2))
    def submit(self, waits: list[bool], chain: bool, parallel: int) -> None:
        name = f"j{self.jobs}"
        self.jobs += 1
        tasks = [
            {
                "id": f"t{place}",
                **self.stepped.command(waits=waiting),
                "dependencies": [f"t{place - 1}"] if chain and place else [],
                "retries": 1,
                "retry_delay": 0,
            }
            for place, waiting in enumerate(waits)
        ]
        self.stepped.submit(name, tasks, parallel)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.1, 5, 40]), times=st.integers(1, 4))
    def time_passes(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.stepped.clock.passed += seconds / times
            self.stepped.go_round()

    @rule()
    def gate_is_opened(self) -> None:
        self.stepped.open_gate()

    @rule()
    def manager_is_killed(self) -> None:
        """The tasks go on."""
        self.stepped.kill_manager()
        self.stepped.start_manager()

    @precondition(lambda self: self.jobs)
    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        name = f"j{number % self.jobs}"
        if inbox.cancel(self.store, name):
            self.is_cancelled.add(name)

    @precondition(lambda self: self.jobs)
    @rule(number=NUMBERS)
    def add_task(self, number: int) -> None:
        name = f"j{number % self.jobs}"
        self.added += 1
        with contextlib.suppress(JobStateError):
            inbox.add_tasks(self.store, name, [{"id": f"a{self.added}", **self.stepped.command(waits=False)}])

    @rule(number=NUMBERS)
    def trouble_begins(self, number: int) -> None:
        trouble = Trouble(*self.calls[number % len(self.calls)])
        self.stepped.faults.trouble = trouble
        self.stepped.lines.something_changes()
        self.troubles.append(trouble)

    @rule()
    def trouble_is_over(self) -> None:
        self.stepped.faults.trouble = None
        self.stepped.lines.something_changes()

    @rule()
    def somebody_reads(self) -> None:
        with self.stepped.faults.on(), contextlib.suppress(OSError, AirExecutorError):
            read_all(self.store)

    # -- what must be so in the end ------------------------------------------------------------------------

    def let_all_end(self) -> None:
        self.stepped.let_all_end()
        for job in self.store.list_jobs():
            assert job.state.is_terminal, f"{job.name} stands still: {job} {self.store.get_tasks(job.name)}"
        assert len(list(self.store.list_jobs())) == self.jobs
        assert not inbox.requests(self.store)

    def check_what_ran(self) -> None:
        done = self.stepped.done()
        assert set(done.values()) <= {1}, f"an attempt ran more than once: {done}"
        is_for_now = all(trouble.error in files.TRANSIENT for trouble in self.troubles)
        for job in self.store.list_jobs():
            for task in self.store.get_tasks(job.name):
                said = f"{job.name} {task}"
                ran = [key for key in done if key[:2] == (job.name, task.id)]
                assert task.status.is_terminal, said
                assert task.reason is not Reason.LOST, said
                if task.status is TaskStatus.COMPLETED:
                    assert len(ran) == 1, said
                if task.reason is Reason.SPAWN:
                    assert not ran, said
                if is_for_now and job.name not in self.is_cancelled:
                    assert task.status is TaskStatus.COMPLETED, said
            if is_for_now and job.name not in self.is_cancelled:
                assert job.state is JobState.COMPLETED, job

    def check_lines(self) -> None:
        """What goes wrong is said once, and once that it is over."""
        assert not self.stepped.lines.repeated
        assert not self.stepped.lines.wrong, "that is not said to be over"


def test_where_directories_cannot_be_flushed_an_end_is_written_once() -> None:
    """A write that counted as failed would wake the manager, which would write again, and so on."""
    stepped = SteppedManager()
    try:
        stepped.faults.trouble = Trouble("jobs.files", "fsync", errno.EINVAL)
        stepped.start_manager()
        stepped.submit("j", [{"id": "t", **stepped.command(waits=False)}], 1)
        assert stepped.let_all_end()
        assert stepped.store.get_job("j").state is JobState.COMPLETED
        written = files.stamp(stepped.store.paths("j").state)
        for _ in range(10):
            stepped.clock.passed += 1.0
            stepped.go_round()
        assert files.stamp(stepped.store.paths("j").state) == written
        assert stepped.faults.failed
        assert not stepped.lines.lines
    finally:
        stepped.close()


if EXAMPLES:
    Misfortune.TestCase.settings = settings(max_examples=EXAMPLES)
Misfortune.TestCase.settings = settings(
    Misfortune.TestCase.settings,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMisfortune = Misfortune.TestCase
