"""Files and moments that nobody wishes for: none of them ends the manager, repeats work, or loses any."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.shim import FIND, script_here
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files, inbox, manager_info, manager_status
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.models import JobState, TaskStatus, parse_tasks, utc_now
from airflow_provider_air_executor.jobs.store import JobStore, dump_job, dump_tasks
from tests.support.jobs import (
    ended,
    outcomes,
    plain,
    publish_job,
    publish_tasks,
    read_log,
    remove,
    reset_tasks,
    shim_pid,
    task,
    write_job,
)
from tests.support.managers import CLI, Managers
from tests.support.processes import is_gone
from tests.support.waiting import PATIENCE, until, wait_until


def is_alive(manager: subprocess.Popen[str], store: JobStore) -> bool:
    """Whether the manager still runs jobs."""
    store.submit("still-alive", ["true"])
    return ended(store, "still-alive").state == "completed" and manager.poll() is None


def test_a_manager_that_ends_does_not_hear_of_children_by_a_closed_socket(managers: Managers) -> None:
    """Python would print that it cannot write there."""
    ask = "print('wakeup', signal.set_wakeup_fd(-1), file=sys.stderr)"
    managers.patch = f"import atexit, signal, sys\natexit.register(lambda: {ask})"
    manager = managers.start(close_fds=True)
    wait_until(lambda: (found := manager_info.load(managers.store)) and found.version, what="it listens to signals")
    manager.terminate()
    assert "wakeup -1" in manager.communicate(timeout=PATIENCE)[1]


class TestSameNameAgain:
    def test_the_kill_of_an_old_job_does_not_reach_its_successor(self, store: JobStore, managers: Managers) -> None:
        managers.start("--kill-grace", "2")
        store.submit("j", ["sleep 1000"])
        shim_pid(store, "j", "task-1")
        inbox.cancel(store, "j")
        ended(store, "j")
        store.delete("j")
        store.submit("j", ["sleep 3"])
        assert ended(store, "j").state == "completed"

    def test_the_timeout_of_an_old_job_does_not_reach_its_successor(self, store: JobStore, managers: Managers) -> None:
        managers.start()
        store.submit("j", [task("a", "true", timeout=2)])
        ended(store, "j")
        store.delete("j")
        store.submit("j", [task("a", "sleep 3", timeout=60)])
        assert ended(store, "j").state == "completed"

    @pytest.mark.parametrize("again", ["a", "b"])
    def test_removed_while_it_runs_and_submitted_again_at_once(
        self, store: JobStore, manager: subprocess.Popen[str], again: str
    ) -> None:
        """The result of the old shim must not be taken for the new one's."""
        store.submit("j", [task("a", "trap 'sleep 0.2; exit 0' TERM; sleep 1000 & wait")])
        shim_pid(store, "j", "a")
        remove(store, "j")
        store.submit("j", [task(again, "sleep 1; exit 5")])
        job = ended(store, "j")
        assert (job.state, store.get_tasks("j")[0].exit_code) == ("failed", 5)
        assert is_alive(manager, store)

    def test_replaced_while_no_manager_ran(self, store: JobStore, managers: Managers) -> None:
        """The task that runs is not in the new list: it is killed, and its end concerns nobody."""
        first = managers.start()
        store.submit("j", [task("a", "sleep 1000")])
        pid = shim_pid(store, "j", "a")
        managers.kill(first)
        state = json.loads(store.paths("j").state.read_text())
        store.paths("j").tasks.write_text(json.dumps([plain("b", "sleep", "0.5")]))
        store.paths("j").state.write_text(json.dumps({**state, "state": "waiting"}))
        second = managers.start()
        assert ended(store, "j").state == "completed"
        wait_until(lambda: is_gone(pid), what="its shim is gone")
        assert is_alive(second, store)


class TestOddFiles:
    def test_a_time_out_of_range_is_not_valid(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        write_job(store, "j", [{**plain("a", "true"), "created_at": "0001-01-01T00:00:00+01:00"}])
        assert ended(store, "j").reason == "invalid"
        assert is_alive(manager, store)

    def test_a_path_that_is_not_utf8(self, store: JobStore, managers: Managers) -> None:
        managers.environment["PATH"] += ":/tmp/" + os.fsdecode(b"\xff")
        process = managers.start()
        store.submit("j", [{"command": "no-such-command"}])
        assert ended(store, "j").reason == "spawn"
        assert is_alive(process, store)

    def test_a_pipe_as_a_log_does_not_freeze_the_manager(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [task("a", 'mkfifo "$AIR_EXECUTOR_JOB_DIR/logs/b.log"'), task("b", after="a")])
        assert ended(store, "j").reason == "spawn"
        assert is_alive(manager, store)

    def test_a_task_that_removes_the_runs_directory(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [task("a", 'rm -rf "$AIR_EXECUTOR_JOB_DIR/runs"'), task("b")], max_parallel_tasks=1)
        assert ended(store, "j").reason == "lost"
        assert outcomes(store, "j")["b"] == ("completed", None)

    def test_an_environment_in_which_no_shell_starts(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit(
            "j", [{"command": "true", "env": {"LD_PRELOAD": "/dev/null", "LD_LIBRARY_PATH": "/nowhere"}}, "true"]
        )
        ended(store, "j")
        store.submit("k", [{"command": "true", "env": {"GLIBC_TUNABLES": "x", "LD_BIND_NOW": "1"}}])
        ended(store, "k")
        assert is_alive(manager, store)

    def test_environment_names_that_a_shell_drops_are_refused(self) -> None:
        with pytest.raises(InvalidJobError, match=r"tasks\[0\].env"):
            parse_tasks([{"command": "a", "env": {"my.var": "x"}}])

    def test_a_running_job_that_is_moved_away_and_linked(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit("j", ["sleep 0.5", "true"], max_parallel_tasks=1)
        shim_pid(store, "j", "task-1")
        shutil.move(store.paths("j").directory, tmp_path / "moved")
        store.paths("j").directory.symlink_to(tmp_path / "moved")
        assert is_alive(manager, store)

    def test_a_corrupt_list_at_retry_ends_the_retry(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        """Who waits for the next attempt sees it fail."""
        store.submit("j", ["exit 1"])
        before = ended(store, "j")
        store.paths("j").tasks.write_text("[{")
        inbox.retry(store, "j")
        wait_until(lambda: store.get_job("j").attempt > before.attempt, what="the attempt is over")
        assert (ended(store, "j").state, ended(store, "j").reason) == ("failed", "invalid")

    def test_a_lock_file_that_is_replaced_ends_the_manager(self, store: JobStore, managers: Managers) -> None:
        process = managers.start()
        store.lock_path.unlink()
        assert process.wait(PATIENCE) == 0

    def test_a_full_disk_does_not_keep_a_manager_from_starting(self, store: JobStore, managers: Managers) -> None:
        store.create_directories()
        store.pid_path.mkdir()  # stands for a pid file that cannot be written
        process = managers.launch()
        assert is_alive(process, store)


class TestRequestsThatWait:
    def test_a_cancel_of_a_job_that_is_not_whole_yet(self, store: JobStore, managers: Managers) -> None:
        managers.start("--poll-interval", "60")
        path = write_job(store, "j", "[")
        inbox.cancel(store, "j")
        time.sleep(0.3)
        (path / "tasks.json").write_text(json.dumps([plain("a", "sleep", "1000")]))
        assert ended(store, "j").reason == "cancelled"

    def test_one_bad_request_does_not_block_the_others(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", ["sleep 1000"])
        shim_pid(store, "j", "task-1")
        (store.inbox_path / "0.json").write_text(json.dumps({"request": "cancel", "job": "漢" * 100}))
        inbox.cancel(store, "j")
        assert ended(store, "j").reason == "cancelled"

    def test_an_added_task_without_an_id_is_refused(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", ["sleep 0.5"])
        request = {"request": "add_tasks", "job": "j", "tasks": [{"command": "true"}]}
        (store.inbox_path / "0.json").write_text(json.dumps(request))
        assert ended(store, "j").state == "completed"
        assert len(store.get_tasks("j")) == 1

    def test_two_who_add_tasks_at_the_same_time(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit("j", [until(tmp_path / "go")])
        for word in ("one", "two"):
            inbox.add_tasks(store, "j", [f"echo {word}"])
        wait_until(lambda: len(store.get_tasks("j")) == 3, what="both are there")
        (tmp_path / "go").touch()
        assert ended(store, "j").state == "completed"

    def test_tasks_added_to_a_completed_job_run_also_after_a_crash_in_between(
        self, store: JobStore, managers: Managers
    ) -> None:
        first = managers.start()
        store.submit("j", ["true"])
        ended(store, "j")
        managers.kill(first)
        publish_job(store, store.get_job("j").evolve(state=JobState.WORKING))
        inbox.add_tasks(store, "j", [task("late", "echo late")])
        publish_job(store, store.get_job("j").evolve(state=JobState.COMPLETED))
        added = inbox.load_request(inbox.requests(store)[0]).tasks
        publish_tasks(store, "j", [*store.get_tasks("j"), *added])  # where the killed manager had come to
        managers.start()
        wait_until(lambda: read_log(store, "j", "late").data == b"late\n", what="it has run")
        assert ended(store, "j").state == "completed"


class TestRestarts:
    def test_what_a_task_added_while_the_manager_ended_is_not_lost(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """It is in the list that the last snapshot has replaced."""
        first = managers.start()
        store.submit("j", [until(tmp_path / "go")])
        shim_pid(store, "j", "task-1")
        wait_until(lambda: store.get_tasks("j")[0].status is TaskStatus.RUNNING, what="it runs")
        managers.kill(first)
        listed = store.get_tasks("j")
        files.publish(store.paths("j").previous_tasks, json.dumps([plain("new", "echo", "new")]).encode())
        managers.start()
        (tmp_path / "go").touch()
        assert ended(store, "j").state == "completed"
        assert {item.id for item in store.get_tasks("j")} == {listed[0].id, "new"}

    def test_a_lost_task_is_tried_again_if_it_says_so(self, store: JobStore, managers: Managers) -> None:
        """Said to be running since before the machine was started."""
        first = managers.start()
        store.submit("j", [task("a", "true", retries=1)])
        ended(store, "j")
        managers.kill(first)
        store.paths("j").record("a", 1).unlink()
        old = utc_now().replace(year=2020)
        publish_tasks(store, "j", [store.get_tasks("j")[0].evolve(status=TaskStatus.RUNNING, started_at=old)])
        publish_job(store, store.get_job("j").evolve(state=JobState.WORKING, started_clock="another 1.0"))
        managers.start()
        assert ended(store, "j").state == "completed"
        assert store.get_tasks("j")[0].attempt == 2

    def test_the_delay_of_a_retry_outlives_the_manager(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        first = managers.start()
        store.submit("j", [task("a", f"date +%s.%N >> {tmp_path}/out; exit 1", retries=1, retry_delay=10)])
        wait_until(
            lambda: store.get_tasks("j")[0].attempt == 1 and store.get_tasks("j")[0].status == "pending",
            what="it waits",
        )
        managers.kill(first)
        managers.start()
        inbox.add_tasks(store, "j", ["true"])
        assert ended(store, "j").reason == "exit"
        began, again = map(float, (tmp_path / "out").read_text().split())
        assert again - began > 9.9

    def test_results_that_came_before_the_job_was_said_to_work_are_kept(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """The manager was killed between the start of a task and the publishing of the job's state."""
        store.submit("j", [task("a", f"echo a >> {tmp_path}/out"), task("b", f"echo b >> {tmp_path}/out")])
        store.paths("j").record("a", 1).write_text(f"1 {utc_now().isoformat()} {secrets.token_hex(8)}\n0\n")
        managers.start()
        assert ended(store, "j").state == "completed"
        assert (tmp_path / "out").read_text() == "b\n"

    def test_results_from_before_a_reset_by_hand_do_not_count(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        store.submit("j", [task("a", f"echo a >> {tmp_path}/out")])
        for number in (1, 2):
            store.paths("j").record("a", number).write_text(f"1 2026-11-22T10:16:33+00:00 {secrets.token_hex(8)}\n1\n")
        time.sleep(0.02)
        publish_job(store, store.get_job("j"))
        managers.start()
        assert ended(store, "j").state == "completed"
        assert (tmp_path / "out").read_text() == "a\n"

    def test_a_state_that_was_prepared_before_the_run_it_follows(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """Its content is older than the records; they are of the earlier run all the same."""
        first = managers.start()
        store.submit("j", [task("a", f"echo a >> {tmp_path}/out")])
        prepared = store.get_job("j").evolve(state=JobState.WAITING)
        listed = [item.evolve(status=TaskStatus.PENDING, attempt=0) for item in store.get_tasks("j")]
        (tmp_path / "state.json").write_bytes(dump_job(prepared))
        ended(store, "j")
        managers.kill(first)
        files.publish(store.paths("j").previous_tasks, dump_tasks([listed[0].evolve(id="stale")]))
        time.sleep(0.02)
        reset_tasks(store, "j", listed)
        (tmp_path / "state.json").rename(store.paths("j").state)
        managers.start()
        assert ended(store, "j").state == "completed"
        assert (tmp_path / "out").read_text() == "a\na\n"
        assert outcomes(store, "j") == {"a": ("completed", None)}

    def test_records_elsewhere_are_left_alone(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit("j", ["exit 1"])
        ended(store, "j")
        (tmp_path / "syslog.1").touch()
        store.paths("j").runs.rename(tmp_path / "runs")
        store.paths("j").runs.symlink_to(tmp_path)
        inbox.retry(store, "j")
        wait_until(lambda: store.get_job("j").reason == "invalid", what="it is refused")
        assert (tmp_path / "syslog.1").exists()

    def test_a_list_that_is_submitted_again_after_its_state(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """state.json first: the old list, all completed, must not be taken for the new one."""
        managers.start("--poll-interval", "30")  # that long may pass between the two
        tasks = [plain("a", "bash", "-c", f"echo a >> {tmp_path}/out")]
        path = write_job(store, "j", tasks)
        ended(store, "j")
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({**state, "state": "waiting"}))
        time.sleep(0.2)
        (path / "tasks.json").write_text(json.dumps(tasks))
        wait_until(lambda: (tmp_path / "out").read_text() == "a\na\n", what="it has run twice")
        assert ended(store, "j").state == "completed"


class TestManagersInOddPlaces:
    def test_a_manager_started_by_a_task_outlives_the_task(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        other = JobStore(tmp_path / "other")
        line = f"{' '.join(CLI)} manager --detach --idle-timeout 60 --base-path {other.base_path}; sleep 1000"
        store.submit("j", [task("a", line)])
        pid = wait_until(lambda: manager_status.pid(other), what="the other manager runs")
        inbox.cancel(store, "j")
        assert ended(store, "j").reason == "cancelled"
        assert manager_status.pid(other) == pid
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not manager_status.is_running(other), what="it has ended")

    def test_a_manager_that_cannot_retire_does_not_spin(self, store: JobStore, managers: Managers) -> None:
        """There is a request that cannot be carried out yet, of a job whose list is half-written."""
        write_job(store, "j", "[")
        inbox.cancel(store, "j")
        process = managers.start("--idle-timeout", "0.2", "--poll-interval", "60")
        time.sleep(0.5)
        before = cpu_seconds(process.pid)
        time.sleep(2)
        assert cpu_seconds(process.pid) - before < 0.5
        assert process.poll() is None


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TestWithoutNotification:
    """As on macOS, or on a network file system: everything is found by the slow pass."""

    @pytest.fixture
    def manager(self, managers: Managers) -> subprocess.Popen[str]:
        managers.patch = "import sys\nsys.modules['inotify_simple'] = None\n"
        return managers.start("--poll-interval", "0.2")

    def test_jobs_requests_and_changes_are_found(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("a", ["true", "exit 1"])
        assert ended(store, "a").state == "failed"
        store.submit("b", ["sleep 1000"])
        shim_pid(store, "b", "task-1")
        inbox.cancel(store, "b")
        assert ended(store, "b").reason == "cancelled"
        inbox.retry(store, "a")
        wait_until(lambda: store.get_job("a").attempt == 2, what="it is retried")
        write_job(store, "c", [plain("t", "true")])
        assert ended(store, "c").state == "completed"
        state = json.loads(store.paths("c").state.read_text())
        store.paths("c").state.write_text(json.dumps({**state, "state": "waiting"}))
        wait_until(lambda: store.get_job("c").attempt == 2, what="it has been set back")
        assert manager.poll() is None


@pytest.mark.parametrize(
    "exported",
    [
        {"SHELLOPTS": "braceexpand:errexit:hashall:interactive-comments"},
        {"BASH_FUNC_echo%%": "() {  true\n}", "BASH_FUNC_cd%%": "() {  true\n}"},
    ],
)
def test_what_bash_takes_from_the_environment_where_it_is_sh(tmp_path: Path, exported: dict[str, str]) -> None:
    """The record says how the command has ended all the same."""
    record, log = tmp_path / "record", tmp_path / "log"
    (tmp_path / "sh").symlink_to(shutil.which("bash") or "")
    text = f'{FIND}{script_here(exported)}shift; run "$@"'
    words = ["token", str(record), "2026-01-01T00:00:00+00:00", str(log), str(tmp_path), "/bin/sh", "-c", "pwd; exit 3"]
    environment = {"PATH": os.environ["PATH"], "AIR_EXECUTOR_RUN": secrets.token_hex(8), **exported}
    done = subprocess.run([tmp_path / "sh", "-c", text, "shim", *words], env=environment, check=False)
    assert done.returncode == 3
    found = read_record(record)
    assert found is not None
    assert found.exit_code == 3
    assert log.read_text() == f"{tmp_path}\n"
