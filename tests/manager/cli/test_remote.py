"""The commands with a manager on another machine: by URL, by SSH, and by an SSH server that forwards no sockets."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, task
from tests.support.managers import CLI, Managers, run_cli
from tests.support.processes import kill_all_with_environment
from tests.support.remote_manager import RemoteManager
from tests.support.sshd import Sshd, needs_sshd
from tests.support.waiting import PATIENCE, until

JOB = {"name": "j", "tasks": [task("a", "echo hello; echo '[1, 2]' > $AIR_EXECUTOR_OUTPUT"), task("b", "exit 3")]}


class Far:
    """The command line on this machine, and a manager on another one.

    :param environment: of the commands.
    :param flags: that say the same.
    :param start: starts the server, or lets it be started.
    :param stop: ends it.
    """

    def __init__(
        self, environment: dict[str, str], flags: list[str], *, start: Callable[[], Any], stop: Callable[[], Any]
    ) -> None:
        self.environment, self.flags, self.start, self.stop = environment, flags, start, stop

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return run_cli([*self.flags, *arguments], self.environment, text=text)

    def done(self, *arguments: str, text: str = "") -> str:
        """What a command prints that does what it is to do."""
        found = self.run(*arguments, text=text)
        assert (found.returncode, found.stderr) == (0, ""), (arguments, found)
        return found.stdout

    @contextlib.contextmanager
    def going_on(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on."""
        with subprocess.Popen(
            [*CLI, *self.flags, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def _environment(managers: Managers, home: Path, **more: str) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in managers.environment.items() if not key.startswith("SSH_")}
    return {**kept, "HOME": str(home), "COLUMNS": "80", **more}


@contextlib.contextmanager
def _by_url(store: JobStore, managers: Managers, tmp_path: Path) -> Iterator[Far]:
    (tmp_path / "tls").mkdir()
    server = RemoteManager(store.base_path, tmp_path / "tls", environment=managers.environment)
    try:
        server.start_alone()
        server.serve()
        token = tmp_path / "token"
        token.write_text(server.run("token", "create", "me", "--scope", "admin").split()[-1] + "\n")
        yield Far(
            _environment(managers, tmp_path / "home"),
            ["--url", server.url, "--ca", str(server.ca), "--token-file", str(token)],
            start=server.serve,
            stop=lambda: server.kill("serve"),
        )
    finally:
        server.close()


@contextlib.contextmanager
def _by_ssh(store: JobStore, managers: Managers, tmp_path: Path, *options: str) -> Iterator[Far]:
    managers.start()
    with Sshd(tmp_path / "sshd", environment={"OF_TEST": str(tmp_path)}, options=options) as sshd:
        try:
            yield Far(
                _environment(managers, sshd.home("far")),
                ["--ssh", "far", "--base-path", str(store.base_path)],
                start=sshd.start,
                stop=sshd.kill,
            )
        finally:
            kill_all_with_environment(f"OF_TEST={tmp_path}")


_WAYS = ["url", pytest.param("ssh", marks=needs_sshd), pytest.param("ssh_without_sockets", marks=needs_sshd)]


@pytest.fixture(params=_WAYS)
def far(request: pytest.FixtureRequest, store: JobStore, managers: Managers, tmp_path: Path) -> Iterator[Far]:
    """Each way to another machine."""
    if request.param == "url":
        way = _by_url(store, managers, tmp_path)
    elif request.param == "ssh":
        way = _by_ssh(store, managers, tmp_path)
    else:
        way = _by_ssh(store, managers, tmp_path, "AllowStreamLocalForwarding no")
    with way as found:
        yield found


@pytest.fixture(params=_WAYS[:2])
def usual(request: pytest.FixtureRequest, store: JobStore, managers: Managers, tmp_path: Path) -> Iterator[Far]:
    """The usual ways to another machine."""
    way = _by_url if request.param == "url" else _by_ssh
    with way(store, managers, tmp_path) as found:
        yield found


@pytest.fixture
def by_url(store: JobStore, managers: Managers, tmp_path: Path) -> Iterator[Far]:
    with _by_url(store, managers, tmp_path) as found:
        yield found


def test_all_commands(usual: Far, store: JobStore, tmp_path: Path) -> None:
    """One after the other, since each needs a process and the way to the other machine."""
    far = usual
    done = far.run("submit", "-", "--wait", text=json.dumps(JOB))
    assert (done.returncode, done.stdout) == (1, "j: failed: task b: exit code 3\n"), done
    assert store.get_job("j").state == "failed"
    assert re.search(r"j +failed .* 1/2 ", far.done("status"))
    assert "1 of 2 tasks done, failed: b" in far.done("status", "j")
    assert [job["name"] for job in json.loads(far.done("status", "--json"))["jobs"]] == ["j"]
    shown = json.loads(far.done("status", "j", "--json"))
    assert [each["status"] for each in shown["tasks"]] == ["completed", "failed"]
    assert far.done("logs", "j") == "a | hello\n"
    assert far.done("logs", "j", "a") == "hello\n"
    assert re.fullmatch(r"20\S+Z a \| hello\n", far.done("logs", "j", "--timestamps", "--tail", "1"))
    assert json.loads(far.done("results", "j")) == {"a": [1, 2]}
    assert json.loads(far.done("results", "j", "a")) == [1, 2]
    assert far.done("retry", "j") == "j: retry requested\n"
    assert far.run("wait", "j").returncode == 1

    name = far.done("run", "--detach", "--bash", until(tmp_path / "go")).strip()
    assert far.done("add-task", "--job", name, "--id", "more", "--", "echo", "more") == "more\n"
    assert far.run("wait", name, "--timeout", "0.1").returncode == 1
    assert far.done("cancel", name, "--wait").startswith(f"{name}: cancellation requested\n")
    assert ended(store, name).reason == "cancelled"
    assert far.done("rm", name) == f"{name}: removed\n"

    assert far.flags[1] in far.done("info") or "manager" in far.done("info")
    assert json.loads(far.done("info", "--json"))["pid"]
    assert "air_executor_jobs_failed" in far.done("metrics")
    assert f"continue: air-executor resume {far.flags[0]} {far.flags[1]}" in far.done("pause")
    assert store.get_job("j").name in far.done("status")
    assert far.done("resume").startswith("tasks are started again on ")
    assert far.done("slots", "3") == "runner local has 3 slots\n"
    assert re.match(r"local: \d of 3 used\n", far.done("slots")) or far.done("slots")
    assert far.done("prune", "--older-than", "0s") == "1 job removed\n"
    assert store.job_names() == []


def test_a_command_prints_and_ends_as_here(far: Far) -> None:
    done = far.run("run", "--name", "n", "--env", "A=1", "--", "sh", "-c", "echo $A; pwd; exit 7")
    assert done.returncode == 7
    assert done.stdout.splitlines()[0] == "1"
    assert done.stdout.splitlines()[1] != str(Path.cwd()), "that is a directory of this machine"
    assert done.stderr.startswith("air-executor: job n\n")
    done = far.run("run", "--name", "n", "--", "true")
    assert (done.returncode, "already exists" in done.stderr or "exists already" in done.stderr) == (4, True)
    assert far.run("run", "--name", "n", "--replace", "--rm", "--", "true").returncode == 0
    assert far.run("status", "n").returncode == 3


def test_what_is_not_valid_is_said_as_here(by_url: Far) -> None:
    done = by_url.run("submit", "-", text=json.dumps({"name": "j", "tasks": []}))
    assert done.returncode == 2
    assert "task" in done.stderr
    for words in (["status", "nope"], ["logs", "nope"], ["cancel", "nope"], ["rm", "nope"], ["wait", "nope"]):
        done = by_url.run(*words)
        assert (done.returncode, "there is no job 'nope'" in done.stderr) == (3, True), words


def test_secrets_are_not_shown(by_url: Far, store: JobStore) -> None:
    from airflow_provider_air_executor.jobs.file_jobs import FileJobs

    text = "for i in 1 2 3 4 5 6; do echo line $i topsecret; done"
    FileJobs(store).submit("j", [task("a", text)], secrets=["topsecret"])
    by_url.done("wait", "j")
    lines = [f"line {number} ***" for number in range(1, 7)]
    assert by_url.done("logs", "j", "a").splitlines() == lines
    assert by_url.done("logs", "j").splitlines() == [f"a | {line}" for line in lines]
    assert by_url.done("logs", "j", "a", "--tail", "2").splitlines() == lines[-2:]
    assert "topsecret" not in by_url.done("status", "j") + by_url.done("status", "j", "--json")


def test_a_token_that_is_not_known(by_url: Far, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("aex_wrong")
    done = by_url.run("status")
    assert done.returncode == 1
    assert "token" in done.stderr


def test_it_is_said_that_it_is_away(by_url: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and what to do in the end."""
    by_url.stop()
    with by_url.going_on("status") as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert re.match(
            r"air-executor: the manager at https://\S+ cannot be reached now: .*; it is tried again\n", first
        )
        rest = process.stderr.read()
        assert process.wait() == 1
    assert "does `air-executor serve` run there?" in rest


def test_a_command_that_waits_survives_an_outage(far: Far, store: JobStore, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"echo one; {until(tmp_path / 'go')}; echo two")])
    with far.going_on("logs", "j", "--follow") as logs, far.going_on("wait", "j") as waits:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "a | one\n"
        far.stop()
        (tmp_path / "go").touch()
        ended(store, "j")
        far.start()
        out, said = logs.communicate(timeout=PATIENCE)
        assert (out, logs.returncode) == ("a | two\n", 0), said
        assert said.count("cannot be reached now") <= 1
        out, said = waits.communicate(timeout=PATIENCE)
        assert (out, waits.returncode) == ("j: completed\n", 0), said


def test_a_manager_is_started_there(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """By SSH, with --embedded: nothing has to run there."""
    with Sshd(tmp_path / "sshd", environment={"OF_TEST": str(tmp_path)}) as sshd:
        environment = _environment(managers, sshd.home("far"), AIR_EXECUTOR_SSH="far")
        try:
            words = ["--base-path", str(store.base_path), "run", "--embedded", "--", "echo", "hello"]
            done = run_cli(words, environment)
            assert (done.returncode, done.stdout) == (0, "hello\n"), done
        finally:
            kill_all_with_environment(f"OF_TEST={tmp_path}")


def test_what_files_need_is_not_imported_for_nothing() -> None:
    """Nobody waits for an HTTP or SSH client who works with files."""
    code = "import sys; import airflow_provider_air_executor.manager.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"httpx", "asyncssh", "fastapi", "uvicorn", "ssl", "pydantic"} & set(loaded)
