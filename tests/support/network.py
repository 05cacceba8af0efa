"""Two machines within this one, joined by a cable that can be cut: one is for Airflow, the far one for the manager.

Each is a network namespace that a process of its own holds. It is gone, with its end of the cable, when that process
and all others within are; the process ends when this one does, however that happens. Nothing has a name that others
see, so that any number of them may be there at the same time. The far one has a host name and mounts of its own: the
files below its :attr:`~Far.home` are seen by its processes alone. These run as a user whom no other machine knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

from tests.support import ordinary_user
from tests.support.ports import free_port
from tests.support.processes import is_gone, kill, pids
from tests.support.waiting import wait_until

NEAR, FAR = "10.83.0.1", "10.83.0.2"  # their addresses, on a network that nothing else reaches
_CABLE = "cable"  # the name of both its ends
_NOBODYS = "02:00:00:00:00:99"  # the hardware address of nothing
_PROGRAMS = ("ip", "nsenter", "setpriv", "unshare")

_UNSHARE_NEAR = ["unshare", "--net"]
_UNSHARE_FAR = ["unshare", "--net", "--mount", "--uts"]

Direction = Literal["requests", "answers"]


@functools.cache
def missing() -> list[str]:
    """What such machines need and is not there."""
    if os.geteuid() != 0:
        return ["root, who can make network namespaces"]
    found = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not found and not _works(*_UNSHARE_FAR, "true"):
        found.append("the right to make network namespaces")
    if not found and not _works(*_UNSHARE_NEAR, "ip", "link", "add", "x", "type", "veth", "peer", "name", "y"):
        found.append("a kernel with veth")
    return found


def _works(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Machine:
    """A network namespace.

    :param unshare: the command that makes it.
    :param setup: lines of ``sh`` that prepare it.
    """

    def __init__(self, unshare: Sequence[str], setup: str) -> None:
        script = f"{setup}ip link set lo up; echo; exec cat"
        self._holder = subprocess.Popen(
            [*unshare, "sh", "-ec", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.read(1), "no network namespace could be made"
        self.pid = self._holder.pid

    def command(self, *words: str) -> list[str]:
        """The command line that runs another one in this machine, as root."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def run(self, *words: str) -> str:
        """What a command prints that runs in this machine as root."""
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in its network, with all that is started within; for this thread, and those that it begins meanwhile."""
        free_port()  # this process keeps its block of ports by a socket in the network that it is in at first
        with open("/proc/thread-self/ns/net", "rb") as before, open(f"/proc/{self.pid}/ns/net", "rb") as network:
            _set_network(network.fileno())
            try:
                yield
            finally:
                _set_network(before.fileno())

    def processes(self) -> list[int]:
        """All that run within, but the one that holds it."""
        inside = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        return [pid for pid in pids() if pid != self.pid and _network_of(pid) == inside and not is_gone(pid)]

    def close(self) -> None:
        """End it, and all that runs within."""

        def is_empty() -> bool:
            found = self.processes()
            kill(found)
            return not found

        wait_until(is_empty, what="all processes of a machine have ended")
        self._holder.communicate()


class Far(Machine):
    """The machine of the manager."""

    user, uid = "air", 64_783  # a user whom this machine alone knows

    def __init__(self) -> None:
        self.home = Path("/srv/air")  # 0700, of that user
        passwd = f"{self.user}:*:{self.uid}:{self.uid}::{self.home}:/bin/sh"
        setup = f"""
        mount --make-rprivate /
        mount -t tmpfs -o mode=755 tmpfs /srv
        mkdir -m 700 {self.home}
        chown {self.uid}:{self.uid} {self.home}
        {{ cat /etc/passwd; echo {shlex.quote(passwd)}; }} > /srv/passwd
        mount --bind /srv/passwd /etc/passwd
        mkdir /srv/open
        {ordinary_user.opened(Path("/srv/open"))}
        hostname far 2>/dev/null || echo far > /proc/sys/kernel/hostname
        """
        super().__init__(_UNSHARE_FAR, setup)
        self.seen_from_here = Path(f"/proc/{self.pid}/root{self.home}")  # the same directory, for this process

    def command(self, *words: str) -> list[str]:
        """The command line that runs another one in this machine, as root."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", *words]

    def as_user(self, *words: str) -> list[str]:
        """The command line that runs another one in this machine, as its user, with an environment of its own."""
        own = [f"HOME={self.home}", f"USER={self.user}", f"LOGNAME={self.user}", "PYTHONDONTWRITEBYTECODE=1"]
        kept = [
            f"{name}={os.environ[name]}" for name in ("PATH", "LANG", "TESTS_OF_AIR_EXECUTOR") if name in os.environ
        ]
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--no-new-privs"]
        return self.command(*become, "env", "-i", f"--chdir={self.home}", *own, *kept, *words)


class Network:
    """Both machines and the cable; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.near = Machine(_UNSHARE_NEAR, "")
            stack.callback(self.near.close)
            self.far = Far()
            stack.callback(self.far.close)
            cable = f"link add {_CABLE} type veth peer name {_CABLE} netns {self.far.pid}"
            self.near.run("ip", *cable.split())
            for machine, address in ((self.near, NEAR), (self.far, FAR)):
                machine.run("ip", "address", "add", f"{address}/24", "dev", _CABLE)
                machine.run("ip", "link", "set", _CABLE, "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """The cable is out: what is sent is refused or lost, as the system likes."""
        self.near.run("ip", "link", "set", _CABLE, "down")
        try:
            yield
        finally:
            self.near.run("ip", "link", "set", _CABLE, "up")

    @contextlib.contextmanager
    def silent(self, *lost: Direction) -> Iterator[None]:
        """Nothing arrives, and nothing is refused: all goes to hardware that is not there.

        :param lost: what does not arrive; default: either.
        """
        ways = {"requests": (self.near, FAR), "answers": (self.far, NEAR)}
        chosen = [ways[direction] for direction in lost or ("requests", "answers")]
        for machine, to in chosen:
            neighbour = f"neighbour replace {to} dev {_CABLE} lladdr {_NOBODYS} nud permanent"
            machine.run("ip", *neighbour.split())
        try:
            yield
        finally:
            for machine, to in chosen:
                machine.run("ip", "neighbour", "delete", to, "dev", _CABLE)


def give(path: Path, uid: int) -> None:
    """Let a file belong to another user, and nobody else."""
    os.chown(path, uid, uid)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process does nothing, as on a machine that hangs; the system still takes connections for it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _network_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _set_network(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x4000_0000):  # CLONE_NEWNET; os.setns is new in Python 3.12
        raise OSError(ctypes.get_errno(), "setns")
