"""Identifies the shims of attempts, and ends the processes that they have started.

A bare process id says nothing: the number may have been given to another process meanwhile, or stem from before a
reboot. The shim of an attempt is a shell, or a process that the fork server has forked. It is identified by its token.
The token of a shell is in its command line and its environment, and ends with the space. The token of a forked shim is
``<pid>.<start time>.<space>``, for it has the command line and the environment of the fork server. One that has had an
attempt before has ``<pid>.<start time>.<space>.<start of the attempt>``.

A command that the launcher has started has no shim of its own. It is identified by
``<token of its environment>.<start time>.<space>``, and counts as long as it has not been reaped: before that, the
launcher records its end.

The space is that of the process ids: the boot, and in a container its own one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.system.clock import boot, seconds_since_boot
from airflow_provider_air_executor.system.environment import RUN_VARIABLE

_LOOK_SECONDS = 0.03
_QUIET_LOOKS = 2
_MOST_DOUBTS = 3
_QUIET_SECONDS = 5.0
_FEWEST_LOOKS = 3  # for a caller that waits until it is over, however long they take on a busy machine
_PAUSE_SECONDS = 0.002  # between them: what was killed needs a processor for its end
_KILL_SECONDS = 10.0
_FAMILY_SECONDS = 2.0  # where the manager waits
_HELD_UP_SECONDS = 0.2  # for what waits in the kernel, maybe for a server that does not answer
_PR_SET_PDEATHSIG = 1
# Of both kinds. A record may hold anything; text that is not a token must not match another process.
_TOKEN = re.compile(r"[0-9a-f]{16}(?:\w+|\.\d+\.\w+)?|\d+\.\d+\.\w+(?:\.\d+)?", re.ASCII)
_OF_COMMAND = re.compile(r"([0-9a-f]{16})\.(\d+)\.(\w+)", re.ASCII)
_RANDOM = 16  # characters of the token of a shell that are its own
_FIRST_SPACE = 0xEFFFFFFC  # the inode of the machine's own space, see PROC_PID_INIT_INO in the kernel's proc_ns.h
_NOT_KNOWN = 0  # when it was started
_LAUNCHER = b"airflow_provider_air_executor.engines.local.launcher"


class _Status(NamedTuple):
    """The fields of ``/proc/<pid>/stat``, see proc(5)."""

    state: str  # Z: it has ended, and has not been reaped
    parent: int
    session: int
    started: int  # in clock ticks since the machine was started


def _status(pid: int | str) -> _Status | None:
    """How a process stands; None if there is none that may be inspected.

    :raises OSError: if it cannot be inspected now.
    """
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _Status(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))
    except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError, ValueError):
        return None


def can_inspect() -> bool:
    """Whether processes can be inspected here: on Linux, where ``/proc`` is not mounted, they cannot."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        os.stat("/proc/self/stat")
    except FileNotFoundError:
        return False
    return True


def has_children() -> bool:
    """Whether this process has children, be they alive or not reaped yet."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@cache
def space() -> str:
    """The identity of the space of process ids of this process, of this boot."""
    with contextlib.suppress(OSError):
        inode = os.stat("/proc/self/ns/pid").st_ino
        if inode != _FIRST_SPACE:
            return f"{boot()}p{inode}"
    return boot()


def _is_ours(its_space: str) -> bool:
    """Whether a space is that of this process; before containers had their own, it was the boot alone."""
    return its_space in (space(), boot())


def shell_token() -> str:
    """A new token for a shell that has attempts."""
    return os.urandom(_RANDOM // 2).hex() + space()


def space_of(token: str) -> str:
    """The space of the process with this token; empty if the token does not say."""
    if not _TOKEN.fullmatch(token):
        return ""
    return token.split(".")[2] if "." in token else token[_RANDOM:]


def identity(pid: int) -> str:
    """The identity of a process of this machine: no other process has it, past or future (Linux only).

    :raises ProcessLookupError: if there is no such process.
    """
    status = _status(pid)
    if status is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return f"{pid}.{status.started}.{space()}"


def identity_from_now(pid: int) -> str:
    """An identity of a process of this machine, for an attempt that it begins now (Linux only).

    :raises ProcessLookupError: if there is no such process.
    """
    return f"{identity(pid)}.{seconds_since_boot() * 1000:.0f}"


def claimed_token(token: str) -> str:
    """The token in a record of a command that is about to be started.

    :param token: that of its environment.
    """
    return f"{token}.{_NOT_KNOWN}.{space()}"


def is_claimed_token(token: str) -> bool:
    """Whether it is that of a command which was about to be started, so that it is not known whether it was."""
    found = _OF_COMMAND.fullmatch(token)
    return found is not None and int(found[2]) == _NOT_KNOWN


def is_launcher(pid: int) -> bool:
    """Whether this process starts commands without a shell (Linux only)."""
    try:
        return _LAUNCHER in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def command_token(token: str, pid: int) -> str:
    """The token in the record of a command of this machine that was started without a shim (Linux only).

    :param token: that of its environment.
    :raises ProcessLookupError: if there is no such process.
    """
    return f"{token}.{identity(pid).partition('.')[2]}"


def _process_of(token: str) -> str:
    """The identity of the process that has this token, whatever attempt it is of."""
    return ".".join(token.split(".")[:3])


def is_later_attempt(token: str) -> bool:
    """Whether it is that of an attempt whose process has had another one before."""
    return token.count(".") == 3


def age(pid: int, token: str) -> float | None:
    """Seconds since the shim with this token began its attempt; None if it is not known (Linux only)."""
    if is_later_attempt(token):
        return max(0.0, seconds_since_boot() - int(token.rpartition(".")[2]) / 1000)
    status = _status(pid)
    return None if status is None else max(0.0, seconds_since_boot() - status.started / os.sysconf("SC_CLK_TCK"))


def is_shim(pid: int, token: str) -> bool:
    """Whether this process is the shim with this token; also True if that cannot be determined now."""
    try:
        return _is_shim(pid, token)
    except OSError:
        return True


def _is_shim(pid: int, token: str) -> bool:
    """Whether this process is the shim with this token.

    :raises OSError: if that cannot be determined now.
    """
    if not _TOKEN.fullmatch(token):
        return False
    command = _OF_COMMAND.fullmatch(token)
    if command is not None:
        status = _status(pid)
        return not can_inspect() if status is None else command[2] == str(status.started) and _is_ours(command[3])
    if "." in token:
        status = _status(pid)
        if status is None:
            return not can_inspect()
        its_pid, started, its_space = _process_of(token).split(".")
        is_it = its_pid == str(pid) and started == str(status.started) and _is_ours(its_space)
        return status.state != "Z" and is_it
    wanted = os.fsencode(token)
    if sys.platform.startswith("linux"):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return not can_inspect()
        return wanted in words
    listed = subprocess.run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return wanted in listed.stdout.split()


def die_with_parent(parent: int | None) -> None:
    """Let this process be killed when the one that has forked it ends, or no longer so (Linux only).

    :param parent: the process that has forked it; None: no longer so.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if parent is not None else 0, 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # it has ended before
        os._exit(1)


def is_of_this_boot(token: str) -> bool:
    """Whether a forked shim was started since the machine was."""
    return _is_ours(_process_of(token).rpartition(".")[2])


class Kill:
    """Kills all processes that a shim has started; it is over when a look finds none of them any more (Linux only).

    They are identified by a variable that they inherit from the shim's environment, whatever session they have moved
    to, as Jenkins does with ``BUILD_ID``. A process may hide its environment, though, as Airflow's do: those are
    identified by their session, which has the number of its leader, the shim. And as long as a shim lives, by their
    parent: a killed child leaves its own children to a shim that adopts orphans (``PR_SET_CHILD_SUBREAPER``).

    A process may start another one in a session of its own and end, again and again, and outrun an inspection of all
    processes one after the other. So the new ones are inspected until, twice, none of them belongs to the shim; one
    that is gone before it could be inspected may have belonged to it. All are inspected again only in the end, since
    numbers are reused: inspecting hundreds of others each time is too slow on a busy machine.

    :param token: of the shim.
    :param session: the session to be ended; None if its number may have been reused by now.
    :param spare: processes that are not ended.
    :param parent: a process whose children are ended.
    """

    def __init__(self, token: str, session: int | None, spare: Collection[int] = (), parent: int | None = None) -> None:
        command = _OF_COMMAND.fullmatch(token)
        of_environment = command[1] if command is not None else token
        self._wanted = os.fsencode(f"{RUN_VARIABLE}={of_environment}") if _TOKEN.fullmatch(token) else None
        self._session = session
        self._spared = {os.getpid(), *spare}
        self._parent = parent
        self.untouchable: set[int] = set()  # what we may not kill
        self.is_over = False
        self.looks = 0  # how often it has been looked
        self._killed: set[int] = set()  # by the last look that has killed some, since all were inspected
        self._had_found_nothing = False  # whether that was so at the last look
        self._doubts: Counter[int] = Counter()  # how often a process could not be classified
        self._seen: set[int] = set()  # processes that do not belong to it, or may not be killed
        self._found_at = time.monotonic() - 0.001  # when something of it was found last, or might have been
        self._inspected_at = self._found_at

    def look(self, seconds: float = _LOOK_SECONDS) -> bool:
        """Inspect processes, and kill those that belong to it.

        :param seconds: how long this may take at most, but for one look at each.
        :return: whether it is over: of all processes none is left but what we may not kill. Otherwise, look again.
        """
        if not sys.platform.startswith("linux"):
            self.is_over = True
            return True
        began = time.monotonic()
        quiet = 0
        self.looks += 1
        killed: set[int] = set()  # that they are gone is seen the next time
        while quiet < _QUIET_LOOKS:
            quiet += 1
            try:
                listed = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            except OSError:  # we are short of something, and have seen nothing
                return False
            for pid in reversed(listed):  # what was started last has the best chance to be met alive
                if pid in self._seen or pid in killed or pid in self._spared:
                    continue
                try:
                    is_meant = self._is_meant(pid)
                except OSError:
                    return False
                # One that has just been forked has no environment for a moment; others never have one.
                self._doubts[pid] += is_meant is None
                if is_meant is False or self._doubts[pid] > _MOST_DOUBTS:
                    self._seen.add(pid)
                if is_meant is None:
                    quiet = 0
                elif is_meant and self._kill(pid):
                    killed.add(pid)
                    self._found_at, quiet = time.monotonic(), 0
            if time.monotonic() - began > seconds:
                break
        self._inspected_at = time.monotonic()
        has_found_nothing = quiet >= _QUIET_LOOKS and self._found_at < began
        if killed:
            self._doubts.clear()
            self._killed = killed
        elif has_found_nothing and self._killed:
            self._doubts.clear()
            self._seen.clear()  # next time, all are inspected
            self._killed = set()
        if killed and self._parent is not None:
            self._seen.clear()  # what was another one's child may be an orphan now
        self.is_over = has_found_nothing and self._had_found_nothing  # twice, with some time between
        self._had_found_nothing = has_found_nothing
        return self.is_over

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of it has been found for some seconds: where processes come and go, that has to do."""
        return self._inspected_at - self._found_at > _QUIET_SECONDS

    def finish(self, seconds: float = _KILL_SECONDS) -> None:
        """Look until it is over, but for so long at most: each process that ends may leave others to its parent.

        What does not end because it waits for a disk or a server is waited for less long.
        """
        began = time.monotonic()
        while not self.look():
            limit = min(_HELD_UP_SECONDS, seconds) if self._is_held_up() else seconds
            if self.looks >= _FEWEST_LOOKS and time.monotonic() - began >= limit:
                return
            time.sleep(_PAUSE_SECONDS)

    def _is_held_up(self) -> bool:
        """Whether all that the last look has killed is in the kernel, which does not let go of it yet."""
        with contextlib.suppress(OSError):
            found = [_status(pid) for pid in self._killed]
            return bool(found) and all(status is not None and status.state == "D" for status in found)
        return False

    def _kill(self, pid: int) -> bool:
        """Kill a process; False if we may not."""
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            self.untouchable.add(pid)
            self._seen.add(pid)
            return False
        except OSError:  # it has just ended
            return True
        return True

    def _is_meant(self, pid: int) -> bool | None:
        """Whether a process belongs to it; None if it had ended before that could be seen.

        :raises OSError: if it cannot be inspected now.
        """
        status = _status(pid)
        if status is None or status.state == "Z":
            return None
        if self._session is not None and status.session == self._session:
            return True
        if status.parent == self._parent:
            return True
        if self._wanted is None:
            return False
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:  # that of another user
            return False
        except (FileNotFoundError, ProcessLookupError):
            return None
        return self._wanted in environment.split(b"\0") if environment else None


def kill_started_by(token: str, pid: int | None, *, has_just_ended: bool = False) -> Kill:
    """Kill every process that the shim with this token has started, as far as one look finds it.

    :param pid: the process id of the shim; None if its attempt is over, and it may have another one.
    :param has_just_ended: whether, if it is not alive, it was a moment ago. After a longer time the number may be that
        of another session.
    :return: the kill, which may not be over: see :meth:`Kill.look`.
    """
    if pid is None:
        kill = Kill(token, None)
        kill.look()
        return kill
    try:
        leader = _status(pid)
        has_session = _is_shim(pid, token) or (has_just_ended and (leader is None or leader.state == "Z"))
    except OSError:
        has_session = has_just_ended
    kill = Kill(token, pid if has_session and _TOKEN.fullmatch(token) else None)
    kill.look()
    return kill


def kill_family(pid: int) -> None:
    """Kill the children of a shim that is to be killed next, and the orphans that they leave to it.

    It is stopped meanwhile, so that it does not go on without them.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    Kill("", None, {pid}, pid).finish(_FAMILY_SECONDS)


def kill_what_else_was_started_by(token: str) -> None:
    """Kill the processes that the shim with this token has started, but for this one and the leader of its session.

    To be called by a process of the shim's own session (Linux only).
    """
    session = os.getsid(0)
    Kill(token, session, {session}, os.getpid()).finish()
