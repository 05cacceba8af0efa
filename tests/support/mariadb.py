"""A real MariaDB server of its own, on a socket in a temporary directory; no port is open."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.support.waiting import PATIENCE, wait_until

PROGRAMS = ("mariadbd", "mariadb-install-db")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
# Small, and in no hurry to write to the disk: nothing of it is to outlive the tests.
_OPTIONS = (
    "skip-networking",
    "innodb-buffer-pool-size=64M",
    "innodb-log-file-size=4M",
    "innodb-flush-log-at-trx-commit=0",
    "innodb-lock-wait-timeout=900",  # slurmdbd asks for that
    "skip-innodb-doublewrite",
)


class MariaDB:
    """A running server, whose user ``root`` is root of this machine; :meth:`close` leaves no file and no process."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="air-executor-mariadb-"))
        self.socket = self.home / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root, as PostgreSQL does.
        nobody = pwd.getpwnam("nobody")
        os.chown(self.home, nobody.pw_uid, nobody.pw_gid)
        self._user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def start(self) -> Self:
        """Create the server, and wait until it answers."""
        data = f"--datadir={self.home}/data"
        made = ("--no-defaults", "--skip-test-db", "--auth-root-authentication-method=socket", data)
        with (self.home / "log").open("wb") as log:
            environment = {**os.environ, "TMPDIR": str(self.home)}
            common = {
                "env": environment,
                "cwd": self.home,
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": log,
                **self._user,
            }
            subprocess.run([self._program("mariadb-install-db"), *made], check=True, **common)
            options = ("--no-defaults", data, f"--socket={self.socket}", *(f"--{option}" for option in _OPTIONS))
            self._process = subprocess.Popen([self._program("mariadbd"), *options], start_new_session=True, **common)
        wait_until(self._answers, what="MariaDB answers")
        return self

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.socket))
            return True
        return False

    def close(self) -> None:
        """End the server, and remove its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE)
        shutil.rmtree(self.home, ignore_errors=True)

    @staticmethod
    def _program(name: str) -> str:
        found = shutil.which(name, path=PATH)
        assert found is not None, f"{name} is not installed"
        return found
