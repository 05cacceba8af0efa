"""A manager that Airflow reaches by HTTPS, as a user starts it: ``air-executor manager --listen``."""

from __future__ import annotations

import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.certificates import Authority
from tests.support.managers import command
from tests.support.ports import free_port
from tests.support.processes import command_line, descendants, kill
from tests.support.waiting import wait_until

TOKEN = "airflow"  # the name of that which Airflow's connection has


class RemoteManager:
    """A manager and its server; a context manager that leaves no process behind.

    :param base_path: of the job filesystem, as its user names it.
    :param directory: for the certificates, which its user can read.
    :param address: to listen on.
    :param run_by: puts before a command line how it is started by that user, on that machine.
    :param environment: all that it has; default: that of this process.
    """

    def __init__(
        self,
        base_path: Path,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        run_by: Callable[..., list[str]] = lambda *words: list(words),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.base_path, self.address, self.port = base_path, address, free_port()
        authority = Authority(directory)
        self.ca = authority.path
        self._tls = authority.issue(hosts=(address,))
        self._directory, self._run_by, self._environment = directory, run_by, environment
        self._trusting = ssl.create_default_context(cafile=self.ca)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # by their commands
        self._token = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, *arguments: str) -> str:
        """What ``air-executor`` prints when it is run by that user, on that machine."""
        words = [*self._words(*arguments), "--base-path", str(self.base_path)]
        done = subprocess.run(words, env=self._environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _words(self, *arguments: str, patch: str = "") -> list[str]:
        return self._run_by(*command(arguments, patch))

    def start(self) -> None:
        """Start the manager with its server, and wait until it answers."""
        self._launch("manager", *self._listening())
        self._wait_until_it_answers("manager")

    def start_alone(self) -> None:
        """Start the manager without a server; see :meth:`serve`."""
        self._launch("manager")

    def serve(self, *, patch: str = "") -> None:
        """Start the server beside the manager, and wait until it answers.

        :param patch: code that it runs before it begins. It may let the server kill itself, by the request of a client
            that was faster than the look whether it answers.
        """
        self._launch("serve", *self._listening(), patch=patch)
        self._wait_until_it_answers("serve", may_be_killed=bool(patch))

    def _launch(self, name: str, *arguments: str, patch: str = "") -> None:
        words = self._words(name, "--base-path", str(self.base_path), *arguments, patch=patch)
        with (self._directory / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                words, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _wait_until_it_answers(self, name: str, *, may_be_killed: bool = False) -> None:
        process = self._processes[name]

        def answers_or_is_killed() -> bool:
            return (may_be_killed and process.poll() == -signal.SIGKILL) or self._is_there(process)

        wait_until(answers_or_is_killed, what="the server answers")

    def _listening(self) -> list[str]:
        tls = ["--tls-cert", str(self._tls.certificate), "--tls-key", str(self._tls.key)]
        return ["--listen", f"{self.address}:{self.port}", *tls]

    def _is_there(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.output()
        try:
            with urllib.request.urlopen(f"{self.url}/v1/health", timeout=5, context=self._trusting):
                return True
        except OSError:
            return False

    def output(self) -> str:
        """All that the manager and the server have printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._directory.glob("*.out")))

    @property
    def url(self) -> str:
        """Of the server."""
        return f"https://{self.address}:{self.port}"

    def server_pid(self) -> int:
        """The process id of the server, which is a child of the manager."""
        (found,) = [pid for pid in descendants({self._processes["manager"].pid}) if "serve" in command_line(pid)]
        return found

    def has_ended(self, name: str) -> bool:
        """Whether one of the two, ``manager`` or ``serve``, has ended."""
        return self._processes[name].poll() is not None

    def stop(self) -> None:
        """End the manager, and so its server, as an administrator does."""
        process = self._processes.pop("manager")
        process.terminate()
        assert process.wait() == 0, self.output()

    def kill(self, name: str) -> None:
        """``kill -9`` of one of the two, and of nothing else."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def token(self) -> str:
        """The bearer token that Airflow has: it may submit."""
        if not self._token:
            self._token = self.run("token", "create", TOKEN, "--scope", "submit").split()[-1]
        return self._token

    def connection(self) -> dict[str, Any]:
        """The fields of Airflow's connection to it."""
        return {
            "conn_type": "air_executor",
            "schema": "https",
            "host": self.address,
            "port": self.port,
            "password": self.token(),
            "extra": {"ca": str(self.ca)},
        }

    def close(self) -> None:
        """End both, and what they have started."""
        found = {process.pid for process in self._processes.values()}
        kill(found | descendants(found))
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
