"""What the existing system hangs on, loses or lies about: here the job fails promptly, or the result is kept."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.changing import ChangingManagers, in_both_kinds, only_warm
from tests.support.jobs import DATA, await_record, ended, outcomes, plain, read_log, remove, shim_pid, task, write_job
from tests.support.managers import CLI, Managers
from tests.support.processes import command_line, is_gone, parent
from tests.support.waiting import PATIENCE, until, wait_until


def shells_on_standby(manager: subprocess.Popen[str]) -> list[int]:
    """The shells on standby of a manager."""
    children = Path(f"/proc/{manager.pid}/task/{manager.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if "-s" in command_line(pid)]


class TestEngines:
    @in_both_kinds
    def test_killed_shim_fails_the_attempt_as_lost_and_takes_its_group_along(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit("j", [task("a", f"sleep 1000 & echo $! > {tmp_path}/pid; wait")])
        pid = shim_pid(store, "j", "a")
        child = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="child"))
        os.kill(pid, signal.SIGKILL)
        assert ended(store, "j").reason == "lost"
        assert outcomes(store, "j") == {"a": ("failed", "lost")}
        wait_until(lambda: is_gone(child), what="the group is gone")

    @in_both_kinds
    def test_killed_shim_is_tried_again_if_the_task_says_so(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        store.submit("j", [task("a", "[ $AIR_EXECUTOR_ATTEMPT = 2 ] || sleep 1000", retries=1)])
        os.kill(shim_pid(store, "j", "a"), signal.SIGKILL)
        assert ended(store, "j").state == "completed"
        assert store.get_tasks("j")[0].attempt == 2

    def test_command_not_found_fails_as_spawn(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [{"command": "no-such-command"}, {"command": "/etc/passwd"}, {"command": "/no/such"}])
        assert ended(store, "j").reason == "spawn"
        assert {reason for _, reason in outcomes(store, "j").values()} == {"spawn"}
        assert "no-such-command" in (store.get_tasks("j")[0].error or "")

    @in_both_kinds
    @pytest.mark.parametrize(
        ("line", "reason", "code"),
        [
            ("exit 3", "exit", 3),
            ("kill -9 $$", "signal", 137),
            ("kill -TERM $$", "signal", 143),
            ("exit 97", "exit", 97),
        ],
    )
    def test_exit_code_and_signal_are_distinguished(
        self, store: JobStore, manager: subprocess.Popen[str], line: str, reason: str, code: int
    ) -> None:
        store.submit("j", [task("a", line)])
        assert ended(store, "j").state == "failed"
        found = store.get_tasks("j")[0]
        assert (found.reason, found.exit_code) == (reason, code)

    @in_both_kinds
    def test_a_bash_text_runs_as_a_script(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        """All of its output is there, ``exit`` ends it, and so does a command that fails after ``set -e``."""
        store.submit(
            "j", [task("a", "echo one\necho two\nexit 4\necho never"), task("b", "set -e\necho one\nfalse\necho no")]
        )
        ended(store, "j")
        assert [found.exit_code for found in store.get_tasks("j")] == [4, 1]
        assert [read_log(store, "j", name).data for name in ("a", "b")] == [b"one\ntwo\n", b"one\n"]

    @pytest.mark.parametrize("command", ["echo", "exit", "eval"])
    def test_commands_of_the_shell_itself_are_not_taken_for_programs(
        self, store: JobStore, manager: subprocess.Popen[str], command: str
    ) -> None:
        """``exit`` as a command must not end the shim, and echo is /bin/echo, which knows no backslashes."""
        store.submit("j", [{"command": command, "args": [r"a\tb"]}])
        job = ended(store, "j")
        if command == "echo":
            assert read_log(store, "j", "task-1").data == b"a\\tb\n"
        else:
            assert job.reason == "spawn"

    def test_arguments_are_handed_over_as_they_are(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        args = ["", " ", "$HOME", "`id`", "a'b\"c", "*", "-n", "ü\n", "\\", "; exit 1", "a\n\n}\nb"]
        args.append("".join(map(chr, range(1, 256))))
        wait_until(lambda: shells_on_standby(manager), what="a shell is on standby")
        store.submit("j", [{"command": "printf", "args": ["[%s]", *args]}])
        assert ended(store, "j").state == "completed"
        assert read_log(store, "j", "task-1").text == "".join(f"[{arg}]" for arg in args)

    def test_a_shell_on_standby_gets_the_next_task_and_ends_with_the_manager(
        self, store: JobStore, managers: Managers
    ) -> None:
        process = managers.start()
        (first,) = wait_until(lambda: shells_on_standby(process), what="a shell is on standby")
        store.submit("j", ["true"])
        assert ended(store, "j").state == "completed"
        assert shim_pid(store, "j", "task-1") == first
        (second,) = wait_until(lambda: shells_on_standby(process), what="the next shell is on standby")
        managers.kill(process)
        wait_until(lambda: is_gone(second), what="it has ended with the manager")

    def test_a_shell_on_standby_that_is_killed_is_replaced(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        (first,) = wait_until(lambda: shells_on_standby(manager), what="a shell is on standby")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: is_gone(first), what="it has ended")
        store.submit("j", ["true"])
        assert ended(store, "j").state == "completed"
        os.kill(wait_until(lambda: shells_on_standby(manager), what="a shell is on standby")[0], signal.SIGSTOP)
        store.submit("stopped", [task("a", "true", timeout=1)])  # it got the task, and is as good as hung
        assert ended(store, "stopped").reason == "timeout"
        store.submit("k", ["true"])
        assert ended(store, "k").state == "completed"

    @pytest.mark.parametrize("length", [100, 3_000, 5_000, 100_000])
    def test_arguments_of_any_length(self, store: JobStore, manager: subprocess.Popen[str], length: int) -> None:
        """Short ones go to the shell on standby, long ones to a new one."""
        wait_until(lambda: shells_on_standby(manager), what="a shell is on standby")
        store.submit("j", [{"command": "printf", "args": ["%s", "'" + "x" * length]}])
        assert ended(store, "j").state == "completed"
        assert read_log(store, "j", "task-1").text == "'" + "x" * length

    def test_environment_directory_and_input(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        line = 'echo "$WORD $PWD $AIR_EXECUTOR_JOB $AIR_EXECUTOR_TASK $AIR_EXECUTOR_ATTEMPT"; cat; '
        line += "ls $AIR_EXECUTOR_JOB_DIR"
        store.submit("j", [task("a", line, env={"WORD": "hé"}, cwd=str(tmp_path))])
        assert ended(store, "j").state == "completed"
        first, *listed = read_log(store, "j", "a").text.splitlines()
        assert first == f"hé {tmp_path} j a 1"
        assert {"logs", "state.json", "tasks.json"} <= set(listed)

    @in_both_kinds
    def test_a_task_gets_none_of_the_managers_descriptors(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        store.submit("j", [task("a", "ls -l /proc/$$/fd; true")])
        assert ended(store, "j").state == "completed"
        log = read_log(store, "j", "a").text
        assert "manager.lock" not in log
        assert "inotify" not in log

    @in_both_kinds
    @pytest.mark.parametrize("size", [100_000, 10_000_000])
    def test_much_on_stderr_is_kept(self, store: JobStore, manager: subprocess.Popen[str], size: int) -> None:
        store.submit("j", [task("a", f"head -c {size} /dev/zero | tr '\\0' x >&2; exit 1")])
        assert ended(store, "j").reason == "exit"
        assert read_log(store, "j", "a").data == b"x" * size

    @in_both_kinds
    def test_output_that_is_not_text_is_kept_byte_for_byte(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        """Not UTF-8, with NUL, and what looks like markup: it breaks neither the job nor what shows it."""
        store.submit("j", [task("a", r"printf '\377\376\000[bold]x[/nope]\033[31m'; exit 1")])
        assert ended(store, "j").reason == "exit"
        assert read_log(store, "j", "a").data == b"\xff\xfe\x00[bold]x[/nope]\x1b[31m"
        assert "[bold]" in read_log(store, "j", "a").text

    @in_both_kinds
    def test_timeout_is_enforced_on_the_whole_group(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        """Also on a command that ignores SIGTERM, and on children that have left the session."""
        line = f"trap '' TERM; setsid sleep 1000 & echo $! > {tmp_path}/pid; while :; do sleep 1; done"
        store.submit("j", [task("a", line, timeout=5)])
        assert ended(store, "j").reason == "timeout"
        child = int((tmp_path / "pid").read_text())
        wait_until(lambda: is_gone(child), what="the child is gone")

    @in_both_kinds
    def test_a_command_that_ends_well_after_its_timeout_has_failed_all_the_same(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        store.submit("j", [task("a", "trap 'exit 0' TERM; sleep 1000 & wait", timeout=0.3)])
        assert ended(store, "j").state == "failed"
        assert outcomes(store, "j") == {"a": ("failed", "timeout")}

    @in_both_kinds
    def test_task_timeout_of_the_settings(self, store: JobStore, managers: Managers) -> None:
        managers.start("--task-timeout", "0.3")
        store.submit("j", [task("a", "sleep 1000"), task("b", "sleep 0.6", timeout=60)], max_parallel_tasks=2)
        assert ended(store, "j").reason == "timeout"
        assert outcomes(store, "j") == {"a": ("failed", "timeout"), "b": ("completed", None)}

    @in_both_kinds
    def test_log_size_is_limited_where_asked_for(self, store: JobStore, managers: Managers) -> None:
        managers.start("--max-log-size", "100000")
        store.submit("j", [task("a", "while :; do echo yes; done")])
        assert ended(store, "j").state == "failed"
        assert "max_log_size" in (store.get_tasks("j")[0].error or "")


class TestLimits:
    @in_both_kinds
    def test_number_of_attempts_is_limited(self, store: JobStore, managers: Managers, tmp_path: Path) -> None:
        managers.start("--max-concurrent-runners", "3")
        for number in range(4):
            store.submit(f"j{number}", [meeting(tmp_path / "out", 3)] * 5, max_parallel_tasks=5)
        for number in range(4):
            assert ended(store, f"j{number}").state == "completed"
        assert highest((tmp_path / "out").read_text()) == 3

    def test_number_of_tasks_of_a_job_is_limited_and_one_without_the_field(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        """A file of the existing system does not have it."""
        for name, expected in (("one", 1), ("two", 2)):
            lines = [meeting(tmp_path / name, expected)] * 6
            if name == "two":
                store.submit(name, lines, max_parallel_tasks=2)
            else:
                write_job(store, name, [plain(f"t{n}", "sh", "-c", text) for n, text in enumerate(lines)])
            assert ended(store, name).state == "completed"
            assert highest((tmp_path / name).read_text()) == expected

    @in_both_kinds
    def test_higher_priority_first_then_older_first(self, store: JobStore, managers: Managers, tmp_path: Path) -> None:
        for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
            store.submit(name, [f"echo {name} >> {tmp_path}/out"], priority=priority)
        managers.start("--max-concurrent-runners", "1")
        for name in "abcd":
            ended(store, name)
        assert (tmp_path / "out").read_text().split() == ["b", "d", "a", "c"]

    @pytest.mark.parametrize("way", ["store", "command line"])
    def test_independent_tasks_run_side_by_side_whoever_submits_them(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path, way: str
    ) -> None:
        """Those that are added later, too. Each of them waits for the next one."""
        first, second, third = (tmp_path / str(number) for number in range(3))
        tasks = [task("a", until(first)), task("b", f"{until(second)}; touch {first}")]
        if way == "store":
            store.submit("j", tasks)
        else:
            command = [*CLI, "submit", "-", "--base-path", str(store.base_path)]
            subprocess.run(command, input=json.dumps({"name": "j", "tasks": tasks}), text=True, check=True)
        inbox.add_tasks(store, "j", [task("c", f"{until(third)}; touch {second}"), task("d", f"touch {third}")])
        assert ended(store, "j").state == "completed"

    @in_both_kinds
    def test_job_timeout(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [task("a", "sleep 1000"), task("b")], timeout=0.3, max_parallel_tasks=1)
        assert ended(store, "j").reason == "timeout"
        assert outcomes(store, "j") == {"a": ("failed", "timeout"), "b": ("failed", "timeout")}


def meeting(file: Path, number: int) -> str:
    """A line of sh that says in a file that it begins, waits until so many have, and a moment later that it ends."""
    others = f"until [ $(grep -c + {file}) -ge {number} ]; do sleep 0.02; done"
    return f"echo + >> {file}; {others}; sleep 0.1; echo end >> {file}"  # zsh prints no dash


def highest(text: str) -> int:
    """The largest number of tasks that ran at the same time."""
    level = top = 0
    for mark in text.split():
        level += 1 if mark == "+" else -1
        top = max(top, level)
    return top


class TestBadJobs:
    """Written by hand, since none of them can be submitted."""

    @pytest.mark.parametrize(
        ("tasks", "says"),
        [
            ([], "empty"),
            ([plain("a", "true", after=("nope",))], "nope"),
            ([plain("a", "true", after=("b",)), plain("b", "true", after=("a",))], "cycle"),
            ([plain("a", "true"), plain("a", "true")], "another task"),
            ('[{"id": "a", "job_name": "j", "comm', "tasks.json"),
            ('{"id": "a"}', "tasks"),
            ([plain("a", "")], "command"),
            ([plain("a", "true", args=[None])], "args[0]"),
            ([plain("../../evil", "true")], "id"),
            ([{**plain("a", "true"), "id": 7}], "id"),
            ([plain("a", "true", status="odd")], "status"),
        ],
    )
    def test_fails_promptly_with_a_sentence(
        self, store: JobStore, manager: subprocess.Popen[str], tasks: object, says: str
    ) -> None:
        write_job(store, "j", tasks)
        job = ended(store, "j")
        assert (job.state, job.reason) == ("failed", "invalid")
        assert says in (job.error or "")
        assert "retry the job" in (job.error or "")

    def test_missing_tasks_fail_the_job(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        (write_job(store, "j", []) / "tasks.json").unlink()
        assert "missing" in (ended(store, "j").error or "")

    def test_corrupt_state_is_quarantined(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        path = write_job(store, "elsewhere", [plain("a", "true")], state="failed").rename(store.jobs_path / ".j")
        (path / "state.json").write_text('{"id": "j-1", "na')
        path = path.rename(store.jobs_path / "j")
        wait_until(
            lambda: list(path.glob(".state.json.invalid-*")) and (path / "state.json").exists(),
            what="it is quarantined",
        )
        assert ended(store, "j").reason == "invalid"
        assert [file.read_text() for file in path.glob(".state.json.invalid-*")] == ['{"id": "j-1", "na']

    @in_both_kinds
    def test_failed_dependency_fails_what_depends_on_it_and_nothing_else(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        store.submit(
            "j", [task("a", "exit 1"), task("b", after="a"), task("c", after="b"), task("d")], max_parallel_tasks=2
        )
        job = ended(store, "j")
        assert (job.state, job.reason) == ("failed", "exit")
        assert outcomes(store, "j") == {
            "a": ("failed", "exit"),
            "b": ("failed", "dependency"),
            "c": ("failed", "dependency"),
            "d": ("completed", None),
        }

    def test_names_that_are_paths_write_nothing_outside(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        write_job(store, "j", [plain("a", "true")], named="../../evil")
        assert ended(store, "j").reason == "invalid"
        assert sorted(item.name for item in tmp_path.iterdir()) == ["base"]

    def test_symlinks_are_not_followed_out(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        path = write_job(store, "logs", [plain("a", "true")], state="failed")
        (path / "logs").rmdir()
        (path / "logs").symlink_to(outside)
        inbox.retry(store, "logs")
        wait_until(lambda: store.get_job("logs").reason == "invalid", what="it is refused")
        path = write_job(store, "log", [plain("a", "echo", "x")], state="failed")
        (path / "logs" / "a.log").symlink_to(outside / "file")
        inbox.retry(store, "log")
        wait_until(lambda: store.get_job("log").reason == "spawn", what="it is refused")
        (store.jobs_path / "job").symlink_to(outside)
        assert list(outside.iterdir()) == []


class TestExternalFiles:
    @pytest.mark.parametrize("kind", sorted(path.name for path in DATA.iterdir()))
    def test_files_of_the_existing_format_run(self, store: JobStore, managers: Managers, kind: str) -> None:
        """Written in place, not atomically: one file a moment after the other, in either order, in two halves."""
        managers.start("--poll-interval", "30")  # that long it may take to write a job
        for order in (("tasks.json", "state.json"), ("state.json", "tasks.json")):
            name = order[0].partition(".")[0]
            path = store.jobs_path / name
            path.mkdir(parents=True)
            for file in order:
                text = (DATA / kind / file).read_text().replace("JOB", name)
                with (path / file).open("w") as opened:
                    opened.write(text[:40])
                    opened.flush()
                    time.sleep(0.05)
                    opened.write(text[40:])
            assert ended(store, name).state == "completed"
            assert [item.status for item in store.get_tasks(name)] == ["completed"] * 3
            assert "second" in read_log(store, name, "task-2").text

    def test_tasks_run_one_at_a_time_in_order(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        names = [f"t{number}" for number in range(6)]
        write_job(store, "j", [plain(name, "bash", "-c", f"echo {name} >> {tmp_path}/out") for name in names])
        assert ended(store, "j").state == "completed"
        assert (tmp_path / "out").read_text().split() == names

    def test_our_files_satisfy_a_strict_reader(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        """One that knows only the fields of the existing format, with their types."""
        store.submit("j", [task("a"), task("b", "exit 1", env={"A": "b"}), task("c", after="b")])
        ended(store, "j")
        state = json.loads(store.paths("j").state.read_text())
        tasks = json.loads(store.paths("j").tasks.read_text())
        assert list(state)[:5] == ["id", "name", "state", "created_at", "updated_at"]
        assert state["id"].startswith("j-")
        assert state["id"].removeprefix("j-").isdecimal()
        assert all(isinstance(state[key], str) for key in list(state)[:5])
        known = [
            "id",
            "job_name",
            "command",
            "args",
            "dependencies",
            "status",
            "created_at",
            "started_at",
            "completed_at",
            "error",
        ]
        for item in tasks:
            assert list(item)[:10] == known
            assert all(isinstance(item[key], str) for key in ("id", "job_name", "command", "status", "created_at"))
            assert all(isinstance(word, str) for word in item["args"] + item["dependencies"])
            assert item["status"] in ("completed", "failed")
            assert item["error"] is None or isinstance(item["error"], str)
            assert item["completed_at"].endswith("Z")
            assert item["job_name"] == "j"

    def test_state_set_back_to_waiting_by_hand_runs_again_what_failed(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit("j", [task("a", f"echo a >> {tmp_path}/out"), task("b", f"[ -e {tmp_path}/flag ]")])
        assert ended(store, "j").state == "failed"
        (tmp_path / "flag").touch()
        state = json.loads(store.paths("j").state.read_text())
        store.paths("j").state.write_text(json.dumps({**state, "state": "waiting"}))
        wait_until(lambda: store.get_job("j").state == "completed", what="it has completed")
        assert (tmp_path / "out").read_text() == "a\n"

    def test_submitted_again_in_place_runs_anew(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        tasks = [plain("a", "bash", "-c", f"echo a >> {tmp_path}/out")]
        path = write_job(store, "j", tasks)
        assert ended(store, "j").state == "completed"
        (path / "tasks.json").write_text(json.dumps(tasks))
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({key: state[key] for key in ("id", "name")} | {"state": "waiting"}))
        wait_until(lambda: (tmp_path / "out").read_text() == "a\na\n", what="it has run twice")
        assert ended(store, "j").state == "completed"


ADD = """\
import json, os, sys
path = os.path.join(os.environ["AIR_EXECUTOR_JOB_DIR"], "tasks.json")
tasks = json.load(open(path))
for task in tasks:
    for key in list(task)[10:]:
        del task[key]
name = sys.argv[1]
tasks.append(dict(tasks[0], id=name, command="bash", args=["-c", "echo " + name], dependencies=[], status="pending"))
if sys.argv[2] == "rename":
    json.dump(tasks, open(path + ".tmp", "w"))
    os.rename(path + ".tmp", path)
else:
    json.dump(tasks, open(path, "w"))
"""


class TestTasksAddedAtRuntime:
    @pytest.mark.parametrize("how", ["rename", "in-place"])
    def test_a_task_that_appends_to_its_own_list(
        self, store: JobStore, managers: Managers, tmp_path: Path, how: str
    ) -> None:
        """While snapshots are written all the time, and as the last thing the last task does."""
        managers.start("--poll-interval", "30")  # that long a list may be half-written
        (tmp_path / "add.py").write_text(ADD)
        busy = [task(f"busy{number}", "sleep 0.02") for number in range(40)]
        adding = [
            task(f"add{number}", f"sleep 0.{number}; python3 {tmp_path}/add.py new{number} {how}", after=after)
            for number, after in ((1, []), (2, ["add1"]), (3, ["add2"]))
        ]
        store.submit("j", [*adding, *busy], max_parallel_tasks=3)
        assert ended(store, "j").state == "completed"
        found = {item.id: item.status for item in store.get_tasks("j")}
        assert {"new1", "new2", "new3"} <= found.keys()
        assert set(found.values()) == {"completed"}
        assert read_log(store, "j", "new3").text == "new3\n"

    def test_a_list_that_is_spoiled_while_the_job_runs_fails_it(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        """The existing system calls such a job completed."""
        store.submit(
            "j", [task("a", 'echo "[{" > $AIR_EXECUTOR_JOB_DIR/tasks.json'), task("b", "sleep 0.1", after="a")]
        )
        job = ended(store, "j")
        assert (job.state, job.reason) == ("failed", "invalid")
        assert len(store.get_tasks("j")) == 2
        assert [file.read_text() for file in store.paths("j").directory.glob(".tasks.json.invalid-*")] == ["[{\n"]

    @in_both_kinds
    def test_added_by_request_with_dependencies_on_running_tasks(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit("j", [task("a", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo a >> {tmp_path}/out")])
        inbox.add_tasks(store, "j", [task("b", f"echo b >> {tmp_path}/out", after="a"), "true"])
        (tmp_path / "go").touch()
        wait_until(lambda: len(store.get_tasks("j")) == 3 and store.get_job("j").state == "completed", what="all ran")
        assert (tmp_path / "out").read_text() == "a\nb\n"


class TestCrashes:
    @in_both_kinds
    def test_manager_killed_at_random_moments_loses_and_repeats_nothing(
        self, store: JobStore, managers: Managers, tmp_path: Path, kind_of_tasks: str
    ) -> None:
        """``kill -9`` ten times during a job of 200 tasks: each task has run exactly once."""
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        moments = random.Random(seed)
        out = tmp_path / "out"
        tasks = [
            task(
                f"t{number}",
                f"echo {number} >> {out}; sleep 0.0{number % 5}",
                after=[f"t{number - 7}"] if number > 6 else [],
            )
            for number in range(200)
        ]
        longest = 0.15 if kind_of_tasks == "processes" else 1.0  # until there may be another generation
        process = managers.start("--max-concurrent-runners", "4")
        store.submit("j", tasks, max_parallel_tasks=4)
        for _ in range(10):
            time.sleep(moments.uniform(0, longest))
            managers.kill(process)
            process = managers.start("--max-concurrent-runners", "4")
        assert ended(store, "j").state == "completed"
        assert sorted(map(int, out.read_text().split())) == list(range(200))
        assert {item.attempt for item in store.get_tasks("j")} == {1}

    @only_warm
    def test_tasks_of_more_generations_than_are_kept_end_as_any_others(
        self, store: JobStore, managers: ChangingManagers, tmp_path: Path
    ) -> None:
        """By themselves, or since they are cancelled or killed: under their own manager, and under the next one."""
        flags = ("--max-concurrent-runners", "100")
        process = managers.start(*flags)
        shims, forked_by = list[int](), set[int]()
        while len(forked_by) < 10:
            number, made = len(shims), len(managers.made())
            line = f"{until(tmp_path / 'go')}; echo {number} >> {tmp_path}/out; exit {number}"
            store.submit(f"j{number}", [task("a", line)])
            shims.append(shim_pid(store, f"j{number}", "a"))
            forked_by.add(parent(shims[-1]))
            wait_until(lambda made=made: len(managers.made()) > made, what="there is another generation")
        for cancelled, killed in ((0, 1), (2, 3)):
            inbox.cancel(store, f"j{cancelled}")
            os.kill(shims[killed], signal.SIGKILL)
            assert ended(store, f"j{cancelled}").reason == "cancelled"
            assert ended(store, f"j{killed}").reason == "lost"
            managers.kill(process)
            process = managers.start(*flags)
        (tmp_path / "go").touch()
        for number in range(4, len(shims)):
            assert ended(store, f"j{number}").reason == "exit"
            assert store.get_tasks(f"j{number}")[0].exit_code == number
        assert sorted(map(int, (tmp_path / "out").read_text().split())) == list(range(4, len(shims)))
        wait_until(lambda: all(map(is_gone, shims)), what="none of them stays")

    @in_both_kinds
    def test_a_result_that_came_while_no_manager_ran_is_kept(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        process = managers.start()
        store.submit(
            "j",
            [task("good", f"sleep 0.2; touch {tmp_path}/ran"), task("bad", "sleep 0.2; exit 7")],
            max_parallel_tasks=2,
        )
        shim_pid(store, "j", "good")
        shim_pid(store, "j", "bad")
        managers.kill(process)
        for name in ("good", "bad"):
            await_record(store, "j", name)
        assert (tmp_path / "ran").exists()
        managers.start()
        assert ended(store, "j").reason == "exit"
        assert outcomes(store, "j") == {"good": ("completed", None), "bad": ("failed", "exit")}

    @in_both_kinds
    def test_a_shim_that_dies_while_no_manager_runs_is_lost(self, store: JobStore, managers: Managers) -> None:
        process = managers.start()
        store.submit("j", [task("a", "sleep 1000")])
        pid = shim_pid(store, "j", "a")
        managers.kill(process)
        os.killpg(pid, signal.SIGKILL)
        managers.start()
        assert ended(store, "j").reason == "lost"

    @in_both_kinds
    def test_an_adopted_task_can_be_timed_out_and_cancelled(self, store: JobStore, managers: Managers) -> None:
        process = managers.start()
        store.submit("timeout", [task("a", "sleep 1000", timeout=1)])
        store.submit("cancel", [task("a", "sleep 1000")])
        pids = [shim_pid(store, name, "a") for name in ("timeout", "cancel")]
        managers.kill(process)
        managers.start()
        inbox.cancel(store, "cancel")
        assert ended(store, "timeout").reason == "timeout"
        assert ended(store, "cancel").reason == "cancelled"
        for pid in pids:
            wait_until(lambda pid=pid: is_gone(pid), what="it is gone")

    @in_both_kinds
    def test_a_timeout_is_one_if_the_manager_has_not_lived_to_see_the_end(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        process = managers.start("--kill-grace", "600")
        line = f"trap 'touch {tmp_path}/told; {until(tmp_path / 'go')}; exit 3' TERM; sleep 1000 & wait"
        failing = f"{until(tmp_path / 'go')}; exit 3"
        store.submit("j", [task("a", line, timeout=1), task("b", failing, timeout=600)], max_parallel_tasks=2)
        shim_pid(store, "j", "b")
        wait_until((tmp_path / "told").exists, what="its time is over")
        managers.kill(process)
        (tmp_path / "go").touch()
        for name in ("a", "b"):
            await_record(store, "j", name)
        managers.start()
        ended(store, "j")
        assert outcomes(store, "j") == {"a": ("failed", "timeout"), "b": ("failed", "exit")}

    @in_both_kinds
    def test_a_reused_process_id_of_another_process_is_not_killed(self, store: JobStore, managers: Managers) -> None:
        process = managers.start()
        store.submit("j", [task("a", "sleep 1000")])
        pid = shim_pid(store, "j", "a")
        managers.kill(process)
        os.killpg(pid, signal.SIGKILL)
        other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        try:
            store.paths("j").record("a", 1).write_text(
                f"{other.pid} 2026-11-22T10:16:33+00:00 {secrets.token_hex(8)}\n"
            )
            managers.start()
            assert ended(store, "j").reason == "lost"
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

    @in_both_kinds
    def test_sigterm_ends_the_manager_not_the_tasks(self, store: JobStore, managers: Managers, tmp_path: Path) -> None:
        process = managers.start()
        store.submit("j", [task("a", f"{until(tmp_path / 'go')}; echo done")])
        shim_pid(store, "j", "a")
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert store.get_job("j").state == "working"
        (tmp_path / "go").touch()
        managers.start()
        assert ended(store, "j").state == "completed"
        assert read_log(store, "j", "a").text == "done\n"

    def test_a_running_task_of_the_existing_system_is_lost_not_completed(
        self, store: JobStore, managers: Managers
    ) -> None:
        write_job(store, "j", [plain("a", "true", status="running")], state="working")
        managers.start()
        assert ended(store, "j").reason == "lost"

    @in_both_kinds
    def test_two_managers_on_one_base_path(
        self, store: JobStore, manager: subprocess.Popen[str], managers: Managers, tmp_path: Path
    ) -> None:
        second = managers.launch()
        assert second.wait(PATIENCE) == 4
        assert f"process {manager.pid}" in second.communicate()[1]
        store.submit("j", [f"echo x >> {tmp_path}/out"] * 20, max_parallel_tasks=5)
        assert ended(store, "j").state == "completed"
        assert (tmp_path / "out").read_text() == "x\n" * 20

    @in_both_kinds
    def test_full_disk_stops_new_work_not_the_manager(self, store: JobStore, managers: Managers) -> None:
        """On a file system of 2 MB that is filled up, and freed later."""
        store.base_path.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", store.base_path],
            check=False,
            capture_output=True,
        )
        if mounted.returncode:
            pytest.skip("mounting needs root")
        try:
            process = managers.start()
            first = task("a", "until [ -e $AIR_EXECUTOR_JOB_DIR/go ]; do sleep 0.02; done")
            store.submit("j", [first, *["true"] * 20], max_parallel_tasks=1)
            shim_pid(store, "j", "a")
            (store.paths("j").directory / "go").touch()
            filler = store.base_path / "filler"
            subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
            assert any("cannot be written" in line for line in process.stderr or ())  # until it says so
            assert process.poll() is None
            filler.unlink()
            assert ended(store, "j").state == "completed"
        finally:
            managers.close()
            subprocess.run(["umount", "-l", store.base_path], check=True)


class TestRequests:
    def test_who_asked_for_a_cancellation_gets_it_from_the_next_manager(
        self, store: JobStore, managers: Managers
    ) -> None:
        """But not for a job that has taken the name meanwhile, and belongs to another run of the Airflow task."""
        owners = [SubmittedBy(dag_id="d", run_id="r", task_id="t", max_tries=number) for number in range(2)]
        for name in ("mine", "another"):
            store.submit(name, [task("a", "sleep 2")], submitted_by=owners[0])
            assert not inbox.cancel(store, name, owners[1])
            assert inbox.cancel(store, name, owners[0])
        os.rename(store.paths("another").directory, store.base_path / "away")
        store.submit("another", [task("a", "sleep 2")], submitted_by=owners[1])
        managers.start()
        assert ended(store, "mine").reason == "cancelled"
        assert ended(store, "another").state == "completed"
        assert not inbox.requests(store)

    @in_both_kinds
    def test_cancel_kills_what_runs_and_starts_nothing_more(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        store.submit("j", [task("a", "sleep 1000"), task("b")], max_parallel_tasks=1)
        pid = shim_pid(store, "j", "a")
        assert inbox.cancel(store, "j")
        job = ended(store, "j")
        assert (job.state, job.reason) == ("failed", "cancelled")
        assert outcomes(store, "j") == {"a": ("failed", "cancelled"), "b": ("failed", "cancelled")}
        assert is_gone(pid)
        assert not inbox.cancel(store, "j")

    def test_a_request_made_while_no_manager_runs_is_not_lost(self, store: JobStore, managers: Managers) -> None:
        store.submit("j", [task("a", "exit 1")])
        inbox.cancel(store, "j")
        managers.start()
        assert ended(store, "j").reason == "cancelled"
        assert inbox.requests(store) == []

    @in_both_kinds
    def test_retry_keeps_what_is_done(self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
        store.submit(
            "j",
            [
                task("a", f"echo a >> {tmp_path}/out"),
                task("b", f"[ -e {tmp_path}/flag ]", after="a"),
                task("c", after="b"),
            ],
        )
        assert ended(store, "j").state == "failed"
        (tmp_path / "flag").touch()
        inbox.retry(store, "j")
        wait_until(lambda: store.get_job("j").state == "completed", what="it has completed")
        assert (tmp_path / "out").read_text() == "a\n"
        assert {item.id: item.attempt for item in store.get_tasks("j")} == {"a": 1, "b": 2, "c": 1}
        assert store.get_job("j").attempt == 2

    def test_a_request_that_is_not_valid_is_quarantined(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        (store.inbox_path / "1.json").write_text("{")
        (store.inbox_path / "2.json").write_text('{"request": "cancel", "job": "../../evil"}')
        (store.inbox_path / "3.json").write_text('{"request": "retry", "job": "nope"}')
        wait_until(lambda: inbox.requests(store) == [], what="the inbox is empty")
        assert len(list(store.inbox_path.glob(".*.invalid-*"))) == 3
        assert manager.poll() is None

    @in_both_kinds
    def test_a_job_that_is_removed_while_it_runs_is_killed(
        self, store: JobStore, manager: subprocess.Popen[str]
    ) -> None:
        store.submit("j", [task("a", "sleep 1000")])
        pid = shim_pid(store, "j", "a")
        remove(store, "j")
        wait_until(lambda: is_gone(pid), what="its shim is gone")
        store.submit("j", [task("a")])
        assert ended(store, "j").state == "completed"
