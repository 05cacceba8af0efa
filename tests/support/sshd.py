"""A real SSH server (Debian's openssh-server) on a port of its own, with its own keys, in a directory of its own.

``make sshd`` installs it. It lets in the user who runs the tests, or any other if that is root, by the key of the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from tests.support.ports import free_port
from tests.support.processes import descendants, is_gone, kill
from tests.support.waiting import wait_until

PROGRAM = Path("/usr/sbin/sshd")
_SEPARATION = Path("/run/sshd")  # compiled into Debian's sshd, which does not start as root without it
_RUN = "TESTS_OF_AIR_EXECUTOR"  # see tests/support/run.py

needs_sshd = pytest.mark.skipif(not PROGRAM.exists(), reason="no sshd; `make sshd` installs it")


class Sshd:
    """An SSH server; a context manager that leaves no process behind.

    :param directory: for its files; no other user needs to read it.
    :param environment: what the commands have in their environment; ``PATH`` begins with the programs of this Python.
    :param options: more lines of ``sshd_config``; they go before the others.
    :param address: of this machine, or of the namespace in which it starts.
    :param port: default: any that is free.
    :param prefix: what is put before its command line: ``("ip", "netns", "exec", "other")``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        address: str = "127.0.0.1",
        port: int | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.host, self.port = address, port or free_port()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.key, self.known_hosts = directory / "client_key", directory / "known_hosts"
        self._log, self._config = directory / "sshd.log", directory / "sshd_config"
        self._environment, self._options, self._prefix = dict(environment or {}), options, prefix
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "client_key"):
            if not (self.directory / name).exists():
                self.make_key(name)
        (self.directory / "authorized_keys").write_bytes((self.directory / "client_key.pub").read_bytes())
        self.trust()
        self._write_config()
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def make_key(self, name: str, *, passphrase: str = "") -> Path:
        """Make a key, in place of one of this name."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)]
        subprocess.run(made, check=True, stdin=subprocess.DEVNULL)
        return path

    def host_key(self) -> str:
        """The public key of the server: its kind and its text."""
        return " ".join((self.directory / "host_key.pub").read_text().split()[:2])

    def trust(self) -> None:
        """Write the key that the server has now to :attr:`known_hosts`."""
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {self.host_key()}\n")

    def start(self) -> Self:
        """Start it, and wait until it listens."""
        if os.geteuid() == 0:
            _SEPARATION.mkdir(mode=0o755, exist_ok=True)
        with self._log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                [*self._prefix, str(PROGRAM), "-D", "-e", "-f", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self._is_ready(begin), what="sshd listens")
        return self

    def _is_ready(self, begin: int) -> bool:
        assert self._process is not None
        said = self._log.read_bytes()[begin:].decode(errors="replace")
        assert self._process.poll() is None, said
        return "Server listening on" in said

    def kill(self) -> None:
        """End it with its sessions and what runs in them, at once: nobody is told, as after a power cut."""
        if self._process is not None:
            kill({self._process.pid, *descendants({self._process.pid})})
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """The process that listens."""
        assert self._process is not None
        return self._process.pid

    def sessions(self) -> set[int]:
        """The processes of connections that were let in."""
        if self._process is None:
            return set()
        return {pid for pid in descendants({self._process.pid}) if not is_gone(pid) and _is_session(pid)}

    def end_sessions(self) -> None:
        """End the connections, and what runs in them; the server goes on listening."""
        found = self.sessions()
        kill(found | descendants(found))

    def log(self) -> str:
        """What the server has printed."""
        return self._log.read_text(errors="replace")

    def logins(self) -> int:
        """How often somebody was let in."""
        return len(re.findall(r"^Accepted (?!key )", self.log(), re.MULTILINE))

    def _write_config(self) -> None:
        run = {name: os.environ[name] for name in (_RUN, "TMPDIR") if name in os.environ}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        variables = {**run, "PATH": path, **self._environment}
        lines = (
            *self._options,
            f"ListenAddress {self.host}:{self.port}",
            f"HostKey {self.directory / 'host_key'}",
            f"AuthorizedKeysFile {self.directory / 'authorized_keys'}",
            "SetEnv " + " ".join(f'"{key}={value}"' for key, value in variables.items()),
            "PidFile none",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "StrictModes no",  # the directories of tests belong to whom they like
            "MaxStartups 1000",
            "MaxSessions 1000",
            "LogLevel VERBOSE",
        )
        self._config.write_text("".join(f"{line}\n" for line in lines))

    def ssh_config(self, name: str = "remote") -> Path:
        """A file for ``ssh -F``, or ``~/.ssh/config``, that knows the server by a name."""
        path = self.directory / "ssh_config"
        path.write_text(
            f"Host {name}\n  HostName {self.host}\n  Port {self.port}\n  User {self.user}\n"
            f"  IdentityFile {self.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n"
            "  GlobalKnownHostsFile /dev/null\n"
        )
        return path

    def home(self, name: str = "remote") -> Path:
        """A home directory whose ``.ssh/config`` knows the server by a name."""
        home = self.directory / "home"
        (home / ".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / ".ssh" / "config").write_bytes(self.ssh_config(name).read_bytes())
        return home

    def connection_uri(self, **extra: str) -> str:
        """A connection of Airflow's SSH provider, as JSON for an ``AIRFLOW_CONN_...`` variable.

        The key of the server is in it, since Airflow's user has another ``known_hosts``.
        """
        import json

        extras = {"key_file": str(self.key), "host_key": self.host_key(), **extra}
        fields = {"conn_type": "ssh", "host": self.host, "port": self.port, "login": self.user, "extra": extras}
        return json.dumps(fields)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there with OpenSSH's client."""
        words = ["ssh", "-F", str(self.ssh_config()), "-o", "BatchMode=yes", "remote", command]
        return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _is_session(pid: int) -> bool:
    """Whether a process is that of a connection: it has written who is let in into its title."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"sshd: ", b"sshd-session: "))
    return False


def shell_command(directory: Path, name: str, script: str) -> Path:
    """A program of the other machine: a script of the shell."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def quoted(*words: str | Path) -> str:
    """A command line for a shell."""
    return shlex.join(map(str, words))


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """An SSH server on this machine."""
    with Sshd(tmp_path / "sshd") as server:
        yield server
