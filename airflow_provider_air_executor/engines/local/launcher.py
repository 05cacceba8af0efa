"""The launcher: starts commands without a shell, and records how they end.

The manager starts it under load, as ``python -m airflow_provider_air_executor.engines.local.launcher DESCRIPTOR``, and
talks to it through a socket, see :mod:`.launching`. It is the parent of the commands and has their records open. So
when the manager is gone, it stays until the last of them has ended and its end is in its record.

What it cannot start at once it refuses, and a shell starts it, or says why it cannot be. A command may follow another
one: it is started as soon as that has ended, without a word from the manager. If that one is not over soon, its
follower is given back. When the manager is gone, none is started.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import claim_with
from airflow_provider_air_executor.system.environment import RUN_VARIABLE, as_given, default_signals
from airflow_provider_air_executor.system.processes import claimed_token, command_token

MAX_MESSAGE = 64_000  # bytes
_MOST = 200  # commands at a time, each with an open record
_IDLE_SECONDS = 60.0  # after which it ends
# After which it reports that a command has begun, if that has not ended meanwhile, and gives back its follower.
_NEW_SECONDS = 0.01
_AGAIN_SECONDS = 0.05  # after which it sends again what the manager could not take
_AT_A_TIME = 100  # events in a message
_LINE = 100  # bytes of the first line of a record, which is written twice, in place: zeros stand before the number
_RUN_VARIABLE = os.fsencode(RUN_VARIABLE)


class Request(NamedTuple):
    """What is to be started."""

    key: int  # of the attempt
    after: int  # the key of the attempt that it follows; -1: it starts at once
    token: str
    record: str
    started_at: str
    log: str
    directory: str  # to run in; empty: that of the launcher
    path: str  # of the command
    variables: list[str]  # NAME=value
    args: list[str]

    @property
    def data(self) -> bytes:
        """The message that says so; no part of it may hold a NUL."""
        key, after, *words, variables, args = self
        return os.fsencode("\0".join((str(key), str(after), *words, str(len(variables)), *variables, *args)))


class Received(NamedTuple):
    """A request as it has come: the system wants bytes anyway."""

    key: int
    after: int
    token: bytes
    record: bytes
    started_at: bytes
    log: bytes
    directory: bytes
    path: bytes
    variables: list[bytes]
    args: list[bytes]

    @classmethod
    def of(cls, data: bytes) -> Received:
        """The request of a message."""
        key, after, token, record, started_at, log, directory, path, number, *words = data.split(b"\0")
        last = int(number)
        return cls(int(key), int(after), token, record, started_at, log, directory, path, words[:last], words[last:])


def main() -> None:
    """Serve until the manager is gone and nothing runs any more."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    Launcher(channel).serve()


@dataclass(slots=True)
class _Command:
    """A command that runs."""

    key: int
    token: str  # of its environment
    started_at: str
    record: int  # a descriptor

    def identify(self, pid: int) -> str:
        """Put the number of the process into the record: the token there."""
        try:
            token = command_token(self.token, pid)
            os.pwrite(self.record, _line(pid, self.started_at, token), 0)
        except OSError:  # the next manager could not know whether it still runs
            os.killpg(pid, signal.SIGKILL)
            return claimed_token(self.token)
        return token

    def end(self, code: int) -> bool:
        """Write the second line of the record; whether that was possible."""
        try:
            os.pwrite(self.record, b"%d\n" % code, _LINE)
        except OSError:
            return False
        finally:
            os.close(self.record)
        return True


def _line(pid: int, started_at: str, token: str) -> bytes:
    """The first line of a record."""
    return f"{pid} {started_at} {token}\n".encode().rjust(_LINE, b"0")


class Launcher:
    """Starts commands at the request of the manager at the other end of a channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._is_alone = False  # whether the manager is gone
        self._running: dict[int, _Command] = {}  # by the process ids
        self._new: dict[int, float] = {}  # those that have just begun, and until when they count as such
        self._followers: dict[int, Received] = {}  # what is to follow some of these, by the keys of those
        self._not_begun: deque[int] = deque(maxlen=_MOST)  # keys of what was refused or given back
        self._events: list[str] = []  # that are to be reported, each as JSON
        self._environment = {os.fsencode(name): os.fsencode(value) for name, value in as_given(os.environ).items()}
        self._default_signals = default_signals()
        self._own_maxrss = 0  # the most memory that this process had, at least
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> NoReturn:
        """Start commands and record their ends."""
        wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Whatever ends all processes ends the commands, and this one records it. They ignore what it does.
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        poll = select.poll()
        for source in (wakeup, self._channel.fileno()):
            poll.register(source, select.POLLIN)
        is_watched = True
        self._events.append('["ready"]')
        self._report()
        while not (self._is_alone and not self._running):
            ready = [descriptor for descriptor, _ in poll.poll(1000 * self._sleep_seconds())]
            if wakeup in ready:
                os.read(wakeup, 4096)
                self._reap()
                self._report()
            if self._channel.fileno() in ready:
                self._answer()
            if self._is_alone and is_watched:
                poll.unregister(self._channel)
                is_watched = False
            if not ready and not self._running and not self._events:
                break  # it was not needed for a while
            if self._new:
                self._identify()
            self._report()
        os._exit(0)

    def _sleep_seconds(self) -> float:
        if self._events:  # the manager could not take them
            return _AGAIN_SECONDS
        for until in self._new.values():
            return max(0.0, until - time.monotonic())
        return _IDLE_SECONDS

    def _answer(self) -> bool:
        """Carry out the next request; whether there was one."""
        try:
            data = self._channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._is_alone = True
            self._followers.clear()
            return False
        if data.isdigit():
            self._withdraw(int(data))
        else:
            self._carry_out(Received.of(data))
        return True

    def _carry_out(self, request: Received) -> None:
        after = request.after
        if after not in self._followers and any(self._running[pid].key == after for pid in self._new):
            self._followers[after] = request
        elif after in self._not_begun or any(command.key == after for command in self._running.values()):
            self._give_back(request)
        else:
            self._begin(request if request.after < 0 else _starting_now(request))

    def _withdraw(self, key: int) -> None:
        """Give back what is to follow another command, or what follows this one, whose process is reported now."""
        for before, request in list(self._followers.items()):
            if key in (before, request.key):
                self._give_back(self._followers.pop(before))
        for pid in self._new:
            if self._running[pid].key == key:
                self._new[pid] = 0.0

    def _give_back(self, request: Received) -> None:
        self._not_begun.append(request.key)
        self._events.append(f'["later",{request.key}]')

    def _begin(self, request: Received) -> None:
        try:
            pid, command = self._start(request)
        except (OSError, ValueError):
            self._not_begun.append(request.key)
            self._events.append(f'["refused",{request.key}]')
        else:
            self._running[pid] = command
            self._new[pid] = time.monotonic() + _NEW_SECONDS

    def _start(self, request: Received) -> tuple[int, _Command]:
        """Start a command: its process id, and what is known of it.

        The record is claimed before that, with the token that the command gets; its number is not known yet. It is in
        the record soon, unless the command has ended by then.

        :raises OSError: if it cannot be started, and was not.
        """
        if len(self._running) >= _MOST:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if request.directory:
            os.chdir(request.directory)
        else:
            os.fchdir(self._home)
        log = files.open_log(request.log)
        try:
            os.set_blocking(log, True)  # as it is for any other program
            token, started_at = request.token.decode(), request.started_at.decode()
            record = claim_with(request.record, _line(os.getpid(), started_at, claimed_token(token)))
            try:
                pid = self._spawn(request, log)
            except BaseException:
                _give_up(request.record, record)
                raise
        finally:
            os.close(log)
        return pid, _Command(request.key, token, started_at, record)

    def _spawn(self, request: Received, log: int) -> int:
        environment = self._environment.copy()
        for variable in request.variables:
            name, _, value = variable.partition(b"=")
            environment[name] = value
        environment[_RUN_VARIABLE] = request.token
        return os.posix_spawn(
            request.path,
            [request.path, *request.args],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._nothing, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
            setsigdef=self._default_signals,
            setsigmask=(),
        )

    def _identify(self) -> None:
        """Put the numbers of those into their records that are not new any more, and report that they have begun."""
        now = time.monotonic()
        for pid in [pid for pid, until in self._new.items() if until <= now]:
            del self._new[pid]
            command = self._running[pid]
            self._events.append(f'["begun",{command.key},{pid},"{command.identify(pid)}"]')
            if command.key in self._followers:
                self._give_back(self._followers.pop(command.key))

    def _reap(self) -> None:
        """Record how commands have ended. They are reaped after that: what has not been reaped is not gone.

        The manager is told before their followers are started, so that it works meanwhile.
        """
        following: list[Received] = []
        while self._running:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                break
            pid = found.si_pid
            code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
            command = self._running.pop(pid, None)
            is_recorded = command is not None and command.end(code)
            used = os.wait4(pid, 0)[2]
            if command is not None:
                self._say_end(command, pid, code if is_recorded else None, used, following)
        self._report()
        for request in () if self._is_alone else following:
            self._begin(request)

    def _say_end(
        self, command: _Command, pid: int, code: int | None, used: resource.struct_rusage, following: list[Received]
    ) -> None:
        """Report the end of a command.

        :param code: None: it could not be recorded.
        :param following: gets what follows it.
        """
        seconds, memory = self._numbers(used)
        said = f'"ended",{command.key},{"null" if code is None else code},{seconds!r},{memory or "null"}'
        if self._new.pop(pid, None) is None:
            self._events.append(f"[{said}]")
            return
        while command.key in self._followers and self._answer():
            pass  # it may have been withdrawn before this command was killed
        follower, started_at = self._followers.pop(command.key, None), ""
        if follower is not None and code is None:  # who has no end is killed once more, with what it has left
            self._give_back(follower)
        elif follower is not None:
            following.append(_starting_now(follower))
            started_at = following[-1].started_at.decode()
        self._events.append(f'[{said},{pid},"{claimed_token(command.token)}","{started_at}"]')

    def _numbers(self, used: resource.struct_rusage) -> tuple[float, int | None]:
        """The seconds and the memory that a command has used; None if that may be the launcher's own memory.

        The system counts it as the child's, from which only its exec has freed it.
        """
        memory = used.ru_maxrss
        if memory > self._own_maxrss:
            self._own_maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used.ru_utime + used.ru_stime, memory if memory > self._own_maxrss else None

    def _report(self) -> None:
        if self._is_alone:
            self._events.clear()
        while self._events:
            try:
                self._channel.send(f"[{','.join(self._events[:_AT_A_TIME])}]".encode(), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # the manager is gone, which the next poll finds
                self._events.clear()
                return
            del self._events[:_AT_A_TIME]


def _starting_now(request: Received) -> Received:
    """A request to start something at once that was not to start when it was sent."""
    return request._replace(started_at=datetime.now(UTC).isoformat().encode())


def _give_up(path: bytes, record: int) -> None:
    """Remove a record that was claimed for a command which could not be started."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == os.fstat(record).st_ino:
            os.unlink(path)
    os.close(record)


if __name__ == "__main__":
    main()
