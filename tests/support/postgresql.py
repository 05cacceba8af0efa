"""A real PostgreSQL server of its own, on a free port of the loopback interface, in a temporary directory."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.ports import free_port
from tests.support.waiting import wait_until

_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
# Shared memory is in its own files, so that nothing is left of a server that was killed.
_OPTIONS = ("max_connections=300", "fsync=off", "dynamic_shared_memory_type=mmap", "unix_socket_directories=")


class PostgreSQL:
    """A running server; a context manager that leaves no file and no process behind.

    :param template: the home of a server that has ended, whose databases this one begins with; default: it is empty.
    """

    def __init__(self, template: Path | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="air-executor-postgresql-"))
        self.port = free_port()
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/postgres"
        self._template = template
        self._process: subprocess.Popen[bytes] | None = None
        # The server refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.home, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def __enter__(self) -> Self:
        if self._template is not None:
            subprocess.run(["cp", "-a", f"{self._template}/data", self.home], check=True)
        else:
            made = ["--pgdata=data", "--username=airflow", "--auth=trust", "--no-sync", "--encoding=UTF8"]
            subprocess.run(
                [self._program("initdb"), *made], check=True, capture_output=True, cwd=self.home, **self._user
            )
        options = [f"-p{self.port}", "-h127.0.0.1", *(f"-c{option}" for option in _OPTIONS)]
        with (self.home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", "data", *options],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._user,
            )
        answers = [self._program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        wait_until(lambda: subprocess.run(answers, check=False).returncode == 0, what="PostgreSQL answers")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def stop(self) -> None:
        """End the server, and leave its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            self._process.wait()
            self._process = None

    @staticmethod
    def _program(name: str) -> str:
        if _INSTALLED:
            return str(_INSTALLED[0] / name)
        found = shutil.which(name)
        assert found is not None, f"{name} is not installed; Debian has it in the package postgresql"
        return found
