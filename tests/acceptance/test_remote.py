"""A manager on another machine: the network fails, or one of its ends does. Jobs go on, and nothing is lost.

Whatever a job does is counted at the other machine, by lines that its tasks write to a file there.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections import Counter
from typing import Any

import pytest

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs.models import Job
from tests.acceptance import over_network as other_machine
from tests.acceptance.over_network import SSH_CONNECTION, OverNetwork
from tests.support.installation import Installation
from tests.support.jobs import read_log
from tests.support.network import stopped
from tests.support.remote_manager import RemoteManager
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(bool(other_machine.missing()), reason=f"no {', '.join(other_machine.missing())}"),
]
AWAY, BACK = "cannot be reached now", "is reached again"
TALKING = ("waits", "defers")  # tasks that show what their jobs print
WAITING = (*TALKING, "senses")
LONG = "AIR_EXECUTOR_TEST_LONG_CUTS"
SILENCES = [60, pytest.param(600, marks=pytest.mark.skipif(LONG not in os.environ, reason=f"takes long; {LONG}=1"))]


# What the server runs before it begins.
DIES_AFTER_SUBMISSION = """
import os, signal
from airflow_provider_air_executor.jobs.store import JobStore
submit = JobStore.submit
def submit_and_die(*arguments, **more):
    submit(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)
JobStore.submit = submit_and_die
"""
JOBS_OF_MANY = 4  # of the DAG ``many``


class Run:
    """A DAG run whose jobs go on until :meth:`finish`.

    :param dag_id: of ``remote_dags.py``.
    """

    def __init__(self, machines: OverNetwork, dag_id: str) -> None:
        self.machines, self.airflow, self.dag_id = machines, machines.airflow, dag_id
        name = uuid.uuid4().hex
        home, seen = machines.far.home, machines.far.seen_from_here
        self._go, self._begun = seen / f"go-{name}", seen / f"begun-{name}"
        conf = {"go": str(home / self._go.name), "begun": str(home / self._begun.name)}
        self.run_id = self.airflow.trigger(dag_id, conf)
        self._before: dict[str, tuple[int, int]] = {}

    def log(self, task_id: str) -> str:
        """The log of a task in Airflow."""
        return self.airflow.log(self.dag_id, self.run_id, task_id)

    def jobs(self) -> list[Job]:
        """Its jobs, at the other machine."""
        found = self.machines.store.list_jobs()
        return [job for job in found if job.submitted_by is not None and job.submitted_by.run_id == self.run_id]

    def wait_until_all_wait(self) -> None:
        """Wait until each way to wait is under way, and what is printed arrives."""
        states = {"waits": "running", "defers": "deferred", "submit": "success", "senses": "deferred"}

        def all_wait() -> bool:
            self.airflow.must_go_on(self.dag_id, self.run_id)
            return self.airflow.task_states(self.dag_id, self.run_id) == states

        wait_until(all_wait, what="all wait", interval=0.5)
        for task_id in WAITING:
            seen = "task" if task_id == "senses" else "work | line 2\n"
            wait_until(lambda task_id=task_id, seen=seen: seen in self.log(task_id), what=f"{task_id} sees its job")
        self.goes_on()
        # On a slow machine a first login takes longer than some wait for it.
        none_is_left = lambda: all(away == back for away, back in self.outages().values())  # noqa: E731
        wait_until(none_is_left, what="it is reached", interval=0.5)
        self._before = self.outages()

    def is_missed(self) -> bool:
        """Whether the logs of all that wait say that the manager is away."""
        return all(away for away, _ in self.outages().values())

    def is_back(self) -> bool:
        """Whether the logs of all that wait say that it is back."""
        return all(back for _, back in self.outages().values())

    def goes_on(self) -> None:
        """Wait until what is printed from now on has arrived in Airflow."""
        store = self.machines.store
        for job in self.jobs():
            if job.submitted_by is None or job.submitted_by.task_id not in TALKING:
                continue
            last = read_log(store, job.name, "work").text.splitlines()[-1]
            task_id = job.submitted_by.task_id
            arrived = lambda task_id=task_id, last=last: f"work | {last}\n" in self.log(task_id)  # noqa: E731
            wait_until(arrived, what=f"{task_id} has printed {last}")

    def finish(self) -> None:
        """Let the jobs end, and check that all of it has succeeded, that each job ran once, and no line is missing."""
        self._go.touch()
        state, _ = self.airflow.follow(self.dag_id, self.run_id)
        assert state == "success", self.airflow.explain(self.dag_id, self.run_id)
        jobs = self.jobs()
        begun = Counter(self._begun.read_text().splitlines())
        assert begun == {job.name: 1 for job in jobs}
        assert {(job.state, job.attempt) for job in jobs} == {("completed", 1)}
        assert {task["try_number"] for task in self.airflow.tasks(self.dag_id, self.run_id)} == {1}
        for job in jobs:
            assert job.submitted_by is not None
            if job.submitted_by.task_id in TALKING:
                self._assert_all_lines_are_there(job, job.submitted_by.task_id)

    def _assert_all_lines_are_there(self, job: Job, task_id: str) -> None:
        printed = read_log(self.machines.store, job.name, "work").text.splitlines()
        # A task succeeds a moment before the last lines of its log are written.
        wait_until(lambda: f"work | {printed[-1]}\n" in self.log(task_id), what="the end of the log is there")
        assert re.findall(r"work \| (.*)\n", self.log(task_id)) == printed
        assert self.airflow.xcom(self.dag_id, self.run_id, task_id) == {"work": "done"}

    def outages(self) -> dict[str, tuple[int, int]]:
        """How often each that waits has said that the manager is away, and that it is back, since all wait."""
        found = {}
        for task_id in WAITING:
            log, (away, back) = self.log(task_id), self._before.get(task_id, (0, 0))
            found[task_id] = log.count(AWAY) - away, log.count(BACK) - back
        return found


@pytest.fixture
def run(over_network: OverNetwork, by_https: RemoteManager) -> Run:
    """All wait for their jobs, by HTTPS."""
    found = Run(over_network, "away")
    found.wait_until_all_wait()
    return found


def assert_it_was_away_once(run: Run) -> None:
    """It is back, and each log has said both once; then let it finish."""
    wait_until(run.is_back, what="it is back", interval=0.5)
    run.goes_on()
    run.finish()
    said = {task_id: re.findall(rf".*(?:{AWAY}|{BACK}).*", run.log(task_id)) for task_id in WAITING}
    assert set(run.outages().values()) == {(1, 1)}, json.dumps(said, indent=1)


def form_says(airflow: Installation, fields: dict[str, Any]) -> tuple[bool, str]:
    """What *Test* of the connection form says of these fields; the API server runs it."""
    body = {**fields, "connection_id": "tried", "extra": json.dumps(fields["extra"])}
    answer = airflow.api("/connections/test", body)
    return answer["status"], answer["message"]


def test_the_connection_form_tests_https(over_network: OverNetwork, by_https: RemoteManager) -> None:
    fields = by_https.connection()
    is_well, message = form_says(over_network.airflow, fields)
    assert is_well
    assert f"at {by_https.url} serves {by_https.base_path}; " in message
    assert "token 'airflow'" in message
    assert "slots are free" in message
    assert f"air-executor {__version__} " in message
    for changes, expected in (
        ({"password": fields["password"][:-1] + "x"}, "token"),
        ({"extra": {}}, "certificate"),
        ({"port": fields["port"] + 1}, "refused"),
    ):
        is_well, message = form_says(over_network.airflow, {**fields, **changes})
        assert not is_well
        assert expected in message
        assert fields["password"] not in message


def test_the_cable_is_out_for_five_seconds(over_network: OverNetwork, run: Run) -> None:
    """That may pass unnoticed: TCP sends again what was lost."""
    with over_network.network.cut():
        time.sleep(5)
    run.goes_on()
    run.finish()
    assert set(run.outages().values()) <= {(0, 0), (1, 1)}


@pytest.mark.parametrize("seconds", SILENCES)
def test_nothing_arrives_for_a_while(
    over_network: OverNetwork, run: Run, by_https: RemoteManager, seconds: float
) -> None:
    """And nothing is refused: the connections are half open. Airflow learns of an end meanwhile when it is back."""
    wait_until(lambda: list((over_network.store.base_path / "readers").iterdir()), what="somebody watches")
    with over_network.network.silent():
        begun = time.monotonic()
        submit_there(over_network, by_https, f"report-{seconds}")
        wait_until(lambda: time.monotonic() > begun + seconds, what="the time is over", interval=1)
        assert over_network.store.get_job(f"report-{seconds}").state == "completed"
        wait_until(run.is_missed, what="it is missed", interval=0.5)
    assert_it_was_away_once(run)
    wait_until(lambda: f"report-{seconds}" in consumed(over_network), what="the end has scheduled a DAG", interval=0.5)
    assert consumed(over_network).count(f"report-{seconds}") == 1


def submit_there(over_network: OverNetwork, manager: RemoteManager, name: str) -> None:
    """Submit a job at the other machine, whose end schedules ``example_asset_consumer``."""
    job = {"name": name, "tasks": ["true"], "outlets": ["file:///tmp/example_report"]}
    (over_network.far.seen_from_here / "report.json").write_text(json.dumps(job))
    manager.run("submit", str(over_network.far.home / "report.json"))


def consumed(over_network: OverNetwork) -> list[str]:
    """The jobs that ``example_asset_consumer`` was told of."""
    airflow = over_network.airflow
    found: list[str] = []
    for run in airflow.api("/dags/example_asset_consumer/dagRuns?limit=100")["dag_runs"]:
        if run["state"] == "success":
            found += airflow.xcom("example_asset_consumer", run["dag_run_id"], "consume")
    return found


def test_the_manager_is_restarted(run: Run, by_https: RemoteManager) -> None:
    """Its server ends and begins with it; its tasks go on meanwhile."""
    by_https.stop()
    wait_until(run.is_missed, what="it is missed", interval=0.5)
    by_https.start()
    assert_it_was_away_once(run)


def test_the_server_is_killed(over_network: OverNetwork, by_https: RemoteManager) -> None:
    """It was a process beside the manager."""
    by_https.stop()
    by_https.start_alone()
    by_https.serve()
    try:
        run = Run(over_network, "away")
        run.wait_until_all_wait()
        by_https.kill("serve")
        wait_until(run.is_missed, what="it is missed", interval=0.5)
        by_https.serve()
        assert_it_was_away_once(run)
    finally:
        by_https.close()
        by_https.start()


def test_the_server_hangs(run: Run, by_https: RemoteManager) -> None:
    """The system takes connections for it, and nobody answers."""
    with stopped(by_https.server_pid()):
        wait_until(run.is_missed, what="it is missed", interval=0.5)
    assert_it_was_away_once(run)


def test_the_server_is_killed_between_each_submission_and_its_answer(
    over_network: OverNetwork, by_https: RemoteManager
) -> None:
    """The requests are sent again, and get the answers that were lost: each job is there once, and runs once."""
    by_https.stop()
    by_https.start_alone()
    by_https.serve(patch=DIES_AFTER_SUBMISSION)
    try:
        run = Run(over_network, "many")
        deaths = 0
        while len(run.jobs()) < JOBS_OF_MANY:
            wait_until(lambda: by_https.has_ended("serve"), what="the server is gone")
            deaths += 1
            by_https.serve(patch=DIES_AFTER_SUBMISSION)
        assert deaths > 1
        by_https.kill("serve")
        by_https.serve()
        run.finish()
        assert len(run.jobs()) == JOBS_OF_MANY
    finally:
        by_https.close()
        by_https.start()


def test_the_connection_form_tests_ssh(over_network: OverNetwork, by_ssh: Sshd) -> None:
    extra = {"ssh_conn_id": SSH_CONNECTION, "base_path": str(over_network.far.home / "tried"), "embedded": True}
    is_well, message = form_says(over_network.airflow, {"conn_type": "air_executor", "extra": extra})
    assert is_well
    assert f"serves {extra['base_path']}; " in message
    is_well, message = form_says(
        over_network.airflow, {"conn_type": "air_executor", "extra": {**extra, "command": "no-such-command"}}
    )
    assert not is_well
    assert "no-such-command" in message


def test_the_cable_is_out_for_five_seconds_by_ssh(over_network: OverNetwork, by_ssh: Sshd) -> None:
    run = Run(over_network, "away")
    run.wait_until_all_wait()
    with over_network.network.cut():
        time.sleep(5)
    run.goes_on()
    run.finish()
    assert set(run.outages().values()) <= {(0, 0), (1, 1)}


@pytest.mark.parametrize("seconds", SILENCES)
def test_nothing_arrives_by_ssh(over_network: OverNetwork, by_ssh: Sshd, seconds: float) -> None:
    run = Run(over_network, "away")
    run.wait_until_all_wait()
    with over_network.network.silent():
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + seconds, what="the time is over", interval=1)
        wait_until(run.is_missed, what="it is missed", interval=0.5)
    assert_it_was_away_once(run)


def test_the_ssh_server_is_killed(over_network: OverNetwork, by_ssh: Sshd) -> None:
    """With all its sessions. The manager, which the first of them has started, goes on."""
    run = Run(over_network, "away")
    run.wait_until_all_wait()
    by_ssh.kill()
    wait_until(run.is_missed, what="it is missed", interval=0.5)
    by_ssh.start()
    assert_it_was_away_once(run)
