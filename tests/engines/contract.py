"""The contract that every engine must keep: a suite to derive from.

A test module gives a class derived from :class:`EngineContract` a fixture ``engine``, which says how its tasks and its
manager look; see ``docs/runners.md``. Everything goes through a real manager and the files of its jobs.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.outputs import read_outputs
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, read_log
from tests.support.managers import Managers
from tests.support.processes import is_gone
from tests.support.waiting import until, wait_until


class Engine:
    """The tasks of an engine, and its managers.

    :param name: the engine's name.
    :param config: what ``config.yaml`` says besides.
    :param environment: more environment variables of its managers.
    """

    impossible: dict[str, Any] = {"cpus": 10_000}
    carriage_return = b"\r"  # what becomes of one at the end of a line
    last_word = ""  # what a task does after much output

    def __init__(self, name: str, *, config: str = "", environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.config = config
        self.environment = environment or {}

    def prepare(self, managers: Managers) -> None:
        """Set up a base path."""
        managers.environment.update({"OUTSIDE": "of the manager", **self.environment})
        managers.store.create_directories()
        (managers.store.base_path / "config.yaml").write_text(f"runner: {self.name}\n{self.config}")

    def task(self, bash: str, **more: Any) -> dict[str, Any]:
        """A task that runs a line of bash."""
        return {"id": "a", "bash": bash, **more}

    def printed(self, store: JobStore) -> str:
        """What the only task of job ``j`` has printed."""
        return read_log(store, "j", "a").text

    def command(self, *words: str, **more: Any) -> dict[str, Any]:
        """A task that runs a command."""
        return {"id": "a", "command": words[0], "args": list(words[1:]), **more}


class EngineContract:
    """The tests; ``engine`` is the fixture to give, and ``manager`` stands in ``conftest.py``."""

    @pytest.fixture
    def run(self, store: JobStore, manager: subprocess.Popen[str], engine: Engine) -> Callable[[dict[str, Any]], Task]:
        """Run a job of one task to its end."""

        def run(task: dict[str, Any]) -> Task:
            store.submit("j", [task])
            ended(store, "j")
            return store.get_tasks("j")[0]

        return run

    def test_success(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        begun = time.monotonic()
        task = run(engine.task("echo it works"))
        assert (task.status, task.exit_code, task.reason) == ("completed", 0, None)
        assert read_log(store, "j", "a").text == "it works\n"
        assert task.started_at is not None
        assert task.completed_at is not None
        assert task.seconds is not None
        assert -1 < task.seconds < time.monotonic() - begun + 1  # some engines tell whole seconds

    def test_failure(self, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("echo no >&2; exit 3"))
        assert (task.status, task.exit_code, task.reason) == ("failed", 3, "exit")

    def test_signal(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("echo one; echo two >&2; kill -SEGV $$"))
        assert (task.status, task.exit_code, task.reason) == ("failed", 139, "signal")
        assert engine.printed(store) == "one\ntwo\n", "nothing else is in the log"

    def test_a_missing_command(self, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.command("no-such-command", "x"))
        assert (task.status, task.reason) == ("failed", "spawn")
        assert "no-such-command" in (task.error or "")

    def test_a_missing_directory(self, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("true", cwd="/no/such/directory"))
        assert (task.status, task.reason) == ("failed", "spawn")
        assert "/no/such/directory" in (task.error or "")

    def test_a_builtin_of_the_shell_is_not_a_command(self, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.command("exit", "0"))
        assert (task.status, task.reason) == ("failed", "spawn")

    def test_environment_and_directory(
        self, store: JobStore, engine: Engine, run: Callable[..., Task], tmp_path: Path
    ) -> None:
        odd = "two\nlines, 'quotes' \"and\" $HOME `x` \\n \t é"
        line = 'printf %s "$ODD"; echo; pwd; echo $AIR_EXECUTOR_JOB $AIR_EXECUTOR_TASK $AIR_EXECUTOR_ATTEMPT; cat'
        task = run(engine.task(line, env={"ODD": odd}, cwd=str(tmp_path)))
        assert task.status == "completed"
        assert engine.printed(store) == f"{odd}\n{tmp_path}\nj a 1\n"

    def test_an_environment_of_its_own(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        line = 'echo "[$OUTSIDE] $OWN $AIR_EXECUTOR_JOB ${PATH:+path}"'
        needed = {name: value for name, value in engine.environment.items() if name == "PYTHONPATH"}
        task = run(engine.task(line, env={"OWN": "1", **needed}, append_env=False))
        assert task.status == "completed"
        assert engine.printed(store) == "[] 1 j path\n"

    def test_variables_that_a_shim_could_use_itself(
        self, store: JobStore, engine: Engine, run: Callable[..., Task]
    ) -> None:
        names = ("found", "directory", "code", "result", "size", "child", "ended", "say", "note", "grace", "n")
        run(engine.task("echo " + "".join(f"${name}" for name in names), env={name: f"<{name}>" for name in names}))
        assert engine.printed(store) == "".join(f"<{name}>" for name in names) + "\n"

    def test_arguments(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        words = ["", "a b", "two\nlines", "\r\n", "'", '"', "$HOME", "$(HOME)", "$$", "*", "é", "-n", "%s", "\\"]
        run(engine.command("printf", "<%s>", *words))
        expected = "".join(f"<{word}>" for word in words)
        assert read_log(store, "j", "a").text == expected.replace("\r", engine.carriage_return.decode())

    def test_odd_bytes(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        run(engine.task(r"printf '\377\000\r\n[red]\033[1mx'; printf '\200' >&2"))
        expected = b"\xff\x00" + engine.carriage_return + b"\n[red]\033[1mx\x80"
        assert store.paths("j").log("a").read_bytes() == expected

    def test_much_output(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(
            engine.task("yes 0123456789abcde | head -c 10000000; yes error | head -c 100000 >&2" + engine.last_word)
        )
        assert task.status == "completed"
        expected = (b"0123456789abcde\n" * 625_000) + (b"error\n" * 16_667)[:100_000]
        found = store.paths("j").log("a").read_bytes()
        assert (len(found), hashlib.sha256(found).digest()) == (len(expected), hashlib.sha256(expected).digest())

    def test_a_result(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        run(engine.task("""echo '{"rows": 7}' > "$AIR_EXECUTOR_OUTPUT" """))
        assert read_outputs(store.paths("j"), store.get_tasks("j")) == {"a": {"rows": 7}}

    def test_timeout(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("echo begun; sleep 1000", timeout=5))
        assert (task.status, task.reason) == ("failed", "timeout")
        assert read_log(store, "j", "a").text.startswith("begun\n")

    def test_the_time_that_it_asked_for(self, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("sleep 1000", resources={"time": "1s"}))
        assert (task.status, task.reason) == ("failed", "timeout")

    def test_impossible_resources(self, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("true", resources=engine.impossible))
        assert (task.status, task.reason) == ("failed", "spawn"), task
        assert task.error

    def test_retries(self, store: JobStore, engine: Engine, run: Callable[..., Task]) -> None:
        task = run(engine.task("echo $AIR_EXECUTOR_ATTEMPT; test $AIR_EXECUTOR_ATTEMPT = 3", retries=2))
        assert (task.status, task.attempt) == ("completed", 3)
        assert read_log(store, "j", "a").text == "1\n2\n3\n"

    # -- cancelling --------------------------------------------------------------------------------------------

    def _running(self, store: JobStore, engine: Engine, task: dict[str, Any], file: Path) -> list[int]:
        """Submit a task, and wait until it has written its process ids into a file."""
        store.submit("j", [task])
        wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="begun")
        return [int(word) for word in file.read_text().split()]

    def test_cancelling_lets_it_clean_up(
        self, store: JobStore, managers: Managers, engine: Engine, tmp_path: Path
    ) -> None:
        engine.prepare(managers)
        managers.start("--kill-grace", "30")
        file = tmp_path / "pids"
        line = f"trap 'echo cleaned; exit 9' TERM; echo $$ > {file}; while :; do sleep 0.1; done"
        self._running(store, engine, engine.task(line), file)
        inbox.cancel(store, "j")
        assert ended(store, "j").reason == "cancelled"
        assert "cleaned\n" in read_log(store, "j", "a").text

    def test_cancelling_kills_what_does_not_want_to_end(
        self, store: JobStore, manager: subprocess.Popen[str], engine: Engine, tmp_path: Path
    ) -> None:
        file = tmp_path / "pids"
        stubborn = "trap : TERM HUP INT; while :; do sleep 0.2; done"
        line = f"trap : TERM; setsid bash -c {shlex.quote(stubborn)} & echo $$ $! > {file}; {stubborn}"
        pids = self._running(store, engine, engine.task(line), file)
        inbox.cancel(store, "j")
        assert ended(store, "j").reason == "cancelled"
        wait_until(lambda: all(map(is_gone, pids)), what="all are gone")

    def test_cancelling_at_once(
        self, store: JobStore, manager: subprocess.Popen[str], engine: Engine, tmp_path: Path
    ) -> None:
        """Nothing of it is left that would go on."""
        for number in range(5):
            name = f"j{number}"
            store.submit(name, [engine.task(f"{until(tmp_path / 'go')}; echo {number} >> {tmp_path}/ran")])
            time.sleep(0.03 * number)
            inbox.cancel(store, name)
        for number in range(5):
            assert ended(store, f"j{number}").reason == "cancelled"
        (tmp_path / "go").touch()
        store.submit("next", [engine.task("sleep 1")])
        assert ended(store, "next").state == "completed"
        assert not (tmp_path / "ran").exists()

    # -- the manager dies ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.1, 0.3, 1.0, 2.0, 4.0])
    def test_the_manager_is_killed(
        self,
        store: JobStore,
        managers: Managers,
        manager: subprocess.Popen[str],
        engine: Engine,
        tmp_path: Path,
        seconds: float,
    ) -> None:
        store.submit("j", [engine.task(f"echo x >> {tmp_path}/ran; sleep 1.5; echo y >> {tmp_path}/ran; exit 5")])
        time.sleep(seconds)
        managers.kill(manager)
        time.sleep(0.2)
        managers.start()
        ended(store, "j")
        task = store.get_tasks("j")[0]
        assert (task.status, task.exit_code, task.attempt) == ("failed", 5, 1), task
        assert (tmp_path / "ran").read_text() == "x\ny\n"

    def test_it_ends_while_there_is_no_manager(
        self,
        store: JobStore,
        managers: Managers,
        manager: subprocess.Popen[str],
        engine: Engine,
        tmp_path: Path,
    ) -> None:
        line = f"echo $$ > {tmp_path}/pids; {until(tmp_path / 'go')}; exit 4"
        pids = self._running(store, engine, engine.task(line), tmp_path / "pids")
        managers.kill(manager)
        (tmp_path / "go").touch()
        wait_until(lambda: all(map(is_gone, pids)), what="it has ended")
        managers.start()
        ended(store, "j")
        assert store.get_tasks("j")[0].exit_code == 4

    def test_many_tasks_and_managers(
        self,
        store: JobStore,
        managers: Managers,
        manager: subprocess.Popen[str],
        engine: Engine,
        tmp_path: Path,
    ) -> None:
        tasks = [engine.task(f"echo {number} >> {tmp_path}/ran", id=f"t{number}") for number in range(20)]
        store.submit("j", tasks, max_parallel_tasks=20)
        for _ in range(4):
            time.sleep(1)
            managers.kill(manager)
            manager = managers.start()
        assert ended(store, "j").state == "completed"
        assert sorted((tmp_path / "ran").read_text().split(), key=int) == [str(number) for number in range(20)]
