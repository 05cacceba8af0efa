"""``air-executor serve``: a server as a process, in the foreground or the background."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.server_child import ServerChild, command
from airflow_provider_air_executor.manager.settings import Settings
from airflow_provider_air_executor.server import presence
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.support.certificates import Authority
from tests.support.managers import CLI, Managers, run_cli
from tests.support.servers import Servers, client_at, client_with
from tests.support.waiting import until, wait_until

JOB = {"name": "a", "tasks": ["true"]}


def ensured(servers: Servers, *flags: str) -> dict[str, object]:
    """What ``serve --ensure`` says."""
    done = run_cli(["serve", "--ensure", "--base-path", str(servers.store.base_path), *flags], servers.environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, object] = json.loads(line)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def trusting(authority: Authority) -> ssl.SSLContext:
    """What a client needs that trusts an authority."""
    return ssl.create_default_context(cafile=str(authority.path))


class TestServe:
    def test_it_says_where_it_answers(self, servers: Servers, store: JobStore):
        process = servers.start("--listen", "127.0.0.1:0")
        info = presence.running(store)
        assert info is not None
        assert (info.pid, info.version, info.is_temporary) == (process.pid, __version__, False)
        assert info.socket == str(store.base_path / "server.sock")
        assert stat.S_IMODE(os.stat(info.socket).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(store.base_path / "server.json").st_mode) == 0o600
        (address,) = info.listen
        token = Tokens(store.base_path).create("r", Scope.READ)
        with client_with(address, token) as client:
            assert client.get("/hello").json()["base_path"] == str(store.base_path)

    def test_there_is_one_of_a_base_path(self, servers: Servers):
        first = servers.start()
        second = servers.launch()
        _, said = second.communicate()
        assert second.returncode == 4
        assert f"a server is already running on {servers.store.base_path} (process {first.pid})" in said

    def test_it_follows_one_that_was_killed(self, servers: Servers):
        servers.start().kill()
        servers.start()
        with servers.client() as client:
            assert client.get("/health").is_success

    def test_it_takes_the_place_of_one_that_was_started_because_it_was_needed(self, servers: Servers):
        process = servers.start("--idle-seconds", "600")
        servers.start()
        assert process.wait() == 0

    def test_it_ends_when_its_base_path_is_removed(self, servers: Servers, store: JobStore):
        process = servers.start()
        shutil.rmtree(store.base_path)
        assert process.wait() == 0

    def test_sigterm_ends_it_though_answers_are_being_sent(self, servers: Servers, store: JobStore):
        """A client that does not read, a stream of changes, and one that has not sent all of its request."""
        process = servers.start()
        store.submit("a", [f"echo {'x' * 100_000} {number}" for number in range(200)])
        path = str(presence.socket_path(store))
        with (
            client_at(path) as client,
            client.stream("GET", "/records/a/tasks"),
            client.stream("GET", "/changes", headers={"Accept": "text/event-stream"}),
            socket.socket(socket.AF_UNIX) as half,
        ):
            half.connect(path)
            half.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        assert not (store.base_path / "server.json").exists()
        assert not (store.base_path / "server.sock").exists()

    def test_tls_is_read_from_the_settings(self, servers: Servers, store: JobStore, tmp_path):
        authority = Authority(tmp_path)
        files = authority.issue("server")
        store.create_directories()
        store.config_path.write_text(f"listen: ['127.0.0.1:0']\ntls_cert: {files.certificate}\ntls_key: {files.key}\n")
        servers.start()
        info = presence.running(store)
        assert info is not None
        assert info.listen[0].startswith("https://127.0.0.1:")
        with client_with(info.listen[0], verify=trusting(authority)) as client:
            assert client.get("/health").is_success

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--listen", "0.0.0.0:0"], "can be overheard"),
            (["--listen", "nonsense"], "neither HOST:PORT"),
            (["--tls-cert", "/nothing"], "both a certificate and its key"),
            (["--listen", "127.0.0.1:0", "--tls-cert", "/nothing", "--tls-key", "/nothing"], "/nothing"),
        ],
    )
    def test_settings_that_are_not_valid_end_it(self, servers: Servers, flags, said):
        process = servers.launch(*flags)
        _, errors = process.communicate()
        assert process.returncode == 2
        assert said in errors
        assert "Traceback" not in errors

    def test_plain_text_is_sent_where_the_flag_says_so(self, servers: Servers):
        servers.start("--listen", "0.0.0.0:0", "--insecure-plain-text")

    def test_a_long_base_path_has_its_socket_elsewhere(self, tmp_path, monkeypatch):
        runtime = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        store = JobStore(tmp_path / ("x" * 100))
        servers = Servers(store)
        try:
            servers.start()
            info = servers.info()
            assert info is not None
            assert Path(info.socket).parent == runtime / f"air-executor-{os.geteuid()}"
            assert stat.S_IMODE(os.stat(Path(info.socket).parent).st_mode) == 0o700
            with servers.client() as client:
                assert client.get("/hello").json()["base_path"] == str(store.base_path)
        finally:
            servers.close()
            shutil.rmtree(runtime)

    def test_a_directory_of_others_is_not_used_for_it(self, tmp_path, monkeypatch):
        with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as runtime:
            monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
            Path(runtime, f"air-executor-{os.geteuid()}").mkdir(mode=0o755)
            process = Servers(JobStore(tmp_path / ("x" * 100))).launch()
            _, said = process.communicate()
        assert process.returncode == 1
        assert "is not a directory of this user alone" in said


class TestEmbedded:
    def test_it_starts_a_manager_when_a_job_comes(self, servers: Servers, managers: Managers, store: JobStore):
        servers.start("--embedded")
        with servers.client() as client:
            assert client.get("/hello").json()["manager"] is None
            assert client.post("/jobs", json=JOB).status_code == 201
            wait_until(lambda: store.get_job("a").state == "completed", what="it runs")
        run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)

    def test_a_manager_that_dies_is_replaced_while_somebody_waits(
        self, servers: Servers, managers: Managers, store: JobStore, tmp_path
    ):
        servers.start("--embedded")
        with servers.client() as client:
            client.post("/jobs", json={"name": "a", "tasks": [until(tmp_path / "go")]})
            wait_until(lambda: store.get_job("a").state == "working", what="it runs")
            pid = manager_status.pid(store)
            assert pid is not None
            with client.stream("GET", "/changes"):
                os.kill(pid, signal.SIGKILL)
                (tmp_path / "go").touch()
                wait_until(lambda: store.get_job("a").state == "completed", what="another one sees its end")
        run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)

    def test_it_ends_when_nobody_asks(self, servers: Servers):
        process = servers.launch("--embedded", "--idle-seconds", "0.5")
        assert process.wait() == 0

    def test_it_stays_while_somebody_listens(self, servers: Servers):
        process = servers.start("--embedded", "--idle-seconds", "4")
        with servers.client() as client, client.stream("GET", "/changes") as response:
            next(line for line in response.iter_lines() if line.startswith(":"))  # a heartbeat after some seconds
            assert process.poll() is None
        assert process.wait() == 0


class TestEnsure:
    def test_it_starts_a_server_that_stays(self, servers: Servers, store: JobStore):
        found = ensured(servers)
        assert found == {"socket": str(presence.socket_path(store)), "version": __version__, "protocol": 1}
        with servers.client() as client:
            assert client.get("/hello").json()["manager"] is None
        assert ensured(servers) == found

    def test_without_a_base_path_it_is_the_one_that_is_there(self, tmp_path):
        """As for all commands: by SSH, one begins in one's home."""
        store = JobStore(tmp_path / "airflow" / "air-executor")
        store.create_directories()
        servers = Servers(store)
        environment = {**servers.environment, "AIRFLOW_HOME": str(tmp_path / "airflow")}
        try:
            done = run_cli(["serve", "--ensure"], environment, cwd=tmp_path)
            assert json.loads(done.stdout)["socket"] == str(presence.socket_path(store)), done.stderr
        finally:
            servers.close()
        done = run_cli(["serve", "--ensure"], {**environment, "AIRFLOW_HOME": "/nothing"}, cwd=tmp_path)
        servers = Servers(JobStore(tmp_path / ".air-executor"))
        assert json.loads(done.stdout)["socket"] == str(presence.socket_path(servers.store))
        servers.close()

    def test_ten_at_once_start_one(self, servers: Servers, store: JobStore):
        with ThreadPoolExecutor(10) as threads:
            found = list(threads.map(lambda _: ensured(servers), range(10)))
        assert found == [found[0]] * 10
        info = servers.info()
        assert info is not None
        log = (store.base_path / "server.log").read_text()
        assert log.count(" serves ") == 1
        assert f"server {info.pid} serves" in log

    def test_it_starts_a_manager_too(self, servers: Servers, managers: Managers, store: JobStore):
        ensured(servers, "--embedded")
        assert manager_status.is_running(store)
        run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)

    def test_a_server_that_starts_no_managers_is_replaced_by_one_that_does(
        self, servers: Servers, managers: Managers, store: JobStore
    ):
        ensured(servers)
        first = servers.info()
        ensured(servers, "--embedded")
        second = servers.info()
        assert first is not None
        assert second is not None
        assert (first.embedded, second.embedded) == (False, True)
        ensured(servers)
        assert servers.info() == second
        run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)

    def test_it_lets_go_of_its_caller(self, servers: Servers):
        """An SSH connection ends only when nobody has its pipes any more."""
        command = [*CLI, "serve", "--ensure", "--base-path", str(servers.store.base_path)]
        done = subprocess.run(
            ["sh", "-c", f"{shlex.join(command)} 2>&1 | cat"],
            env=dict(servers.environment),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["protocol"] == 1

    def test_why_it_cannot_start_is_said(self, servers: Servers, store: JobStore):
        store.create_directories()
        store.config_path.write_text("listen: nonsense\n")
        arguments = ["serve", "--ensure", "--base-path", str(store.base_path)]
        done = run_cli(arguments, servers.environment)
        assert done.returncode == 1
        assert "neither HOST:PORT" in done.stderr


class TestManager:
    def test_its_server_is_a_process_that_ends_with_it(self, servers: Servers, managers: Managers, store: JobStore):
        process = managers.start("--listen", "127.0.0.1:0")
        info = wait_until(servers.info, what="the server answers")
        assert info.pid != process.pid
        with client_at(info.socket) as client:
            client.post("/jobs", json=JOB)
            wait_until(lambda: store.get_job("a").state == "completed", what="it runs")
        managers.kill(process)
        wait_until(lambda: not is_alive(info.pid), what="it ends")
        assert not (store.base_path / "server.json").exists()

    def test_it_ends_when_the_manager_is_stopped(self, servers: Servers, managers: Managers, store: JobStore):
        process = managers.start("--listen", "127.0.0.1:0")
        info = wait_until(servers.info, what="the server answers")
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert not is_alive(info.pid)

    def test_one_that_dies_is_started_again(self, servers: Servers, managers: Managers):
        managers.start("--listen", "127.0.0.1:0")
        first = wait_until(servers.info, what="the server answers")
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: (info := servers.info()) and info.pid != first.pid, what="another one answers")

    def test_it_reads_its_certificate_again_when_the_manager_is_told_to(
        self, servers: Servers, managers: Managers, tmp_path
    ):
        authority = Authority(tmp_path)
        files = authority.issue("server")
        process = managers.start(
            "--listen", "127.0.0.1:0", "--tls-cert", str(files.certificate), "--tls-key", str(files.key)
        )
        info = wait_until(servers.info, what="the server answers")
        (tmp_path / "other").mkdir()
        other = Authority(tmp_path / "other")
        renewed = other.issue("server")
        files.certificate.write_bytes(renewed.certificate.read_bytes())
        files.key.write_bytes(renewed.key.read_bytes())
        process.send_signal(signal.SIGHUP)

        def is_renewed() -> bool:
            try:
                with client_with(info.listen[0], verify=trusting(other)) as client:
                    return client.get("/health").is_success
            except httpx.ConnectError:
                return False

        wait_until(is_renewed, what="the certificate is the new one")
        assert process.poll() is None

    def test_to_be_told_so_does_not_end_a_server_that_is_only_starting(self, servers: Servers, store: JobStore):
        store.create_directories()
        child = ServerChild(command(store, Settings(listen=("127.0.0.1:0",))))
        child.start()
        try:
            pid = wait_until(lambda: child.pid, what="it is started")
            child.reload()
            info = wait_until(servers.info, what="the server answers")
            with client_with(info.listen[0]) as client:
                assert client.get("/health").is_success
            assert (info.pid, servers.info()) == (pid, info)
        finally:
            child.stop()

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--listen", "0.0.0.0:0"], "can be overheard"),
            (["--listen", "nonsense"], "neither HOST:PORT"),
            (["--listen", "127.0.0.1:0", "--tls-cert", "/nothing"], "both a certificate and its key"),
        ],
    )
    def test_settings_with_which_it_would_end_at_once_end_the_manager(self, managers: Managers, flags, said):
        process = managers.launch(*flags)
        _, errors = process.communicate()
        assert process.returncode == 2
        assert said in errors

    def test_it_has_none_unless_it_is_to_listen(self, servers: Servers, manager):
        assert servers.info() is None

    def test_it_imports_nothing_of_what_answers(self, managers: Managers, servers: Servers, store: JobStore):
        managers.patch = (
            "import atexit, sys\n"
            "atexit.register(lambda: print('loaded', sorted({'fastapi', 'uvicorn', 'starlette'} & set(sys.modules)), "
            "file=sys.stderr))"
        )
        process = managers.start("--listen", "127.0.0.1:0", cwd=store.base_path.parent)
        wait_until(servers.info, what="the server answers")
        process.send_signal(signal.SIGTERM)
        assert "loaded []" in process.communicate()[1]
