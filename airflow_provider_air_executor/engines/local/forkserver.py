"""The fork server: imports modules once, and forks a process for each task that needs them.

The manager starts it, as ``python -m airflow_provider_air_executor.engines.local.forkserver DESCRIPTORS MODULE...``,
and talks to it through a socket: one JSON message each way, see :mod:`.serving`. The second descriptor, if there is
one, is a socket to which tasks send reports, see :mod:`~airflow_provider_air_executor.system.import_report`.

The manager takes it for gone when nobody has this end of the socket any more. So a process that was forked has it, too,
until it has claimed the record of its attempt: none begins that the manager does not find.

When the manager is gone it ends. What it has forked goes on: a forked process is the shim of its attempt, see
:mod:`.forked`. One that may run another attempt waits for it; the manager says which attempt gets it, so that it never
kills one attempt for the sake of another.

At the manager's request it also forks generations of itself: processes that import more modules, and then serve as it
does, on a channel of their own; and trials of what they could import. See :mod:`.offspring`.

A module that is imported for its tasks may have these functions:

* ``preload``, which is called once, to load ahead what the module loads at its first use;
* ``watched_files``, which returns files that the module depends on: when one of them changes, or a package, another
  fork server takes the place of this one;
* ``after_fork``, which is called before each attempt, to renew what processes must not share, such as the state of a
  generator of random numbers;
* ``renew``, which is called after an attempt with exit code 0, and returns whether the process may have another one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from airflow_provider_air_executor.engines.local.forked import MAX_MESSAGE, ForkedProcess, other_threads
from airflow_provider_air_executor.engines.local.offspring import (
    IMPORT_SECONDS,
    Offspring,
    begin_trial,
    end_what_was_started,
    private_memory,
)
from airflow_provider_air_executor.engines.local.stamps import Stamps
from airflow_provider_air_executor.system import handover, import_report
from airflow_provider_air_executor.system.memory import use_huge_pages
from airflow_provider_air_executor.system.processes import (
    die_with_parent,
    has_children,
    identity,
    identity_from_now,
    kill_started_by,
)

_IDLE_SECONDS = 60.0  # after which a shim that waits for another attempt ends, unless it is one of the first:
_KEPT_SECONDS = 330.0  # for these, so that what runs every five minutes finds them
_KEPT = os.cpu_count() or 1  # that many
_CHANNEL_BYTES = 4 * MAX_MESSAGE

_preloaded: set[str] = set()  # modules that were imported for the tasks
_reports: list[socket.socket] = []  # to which they send what they have imported, if anybody wants to know


def main() -> None:
    """Import the modules, and serve."""
    channel, *_reports[:] = (socket.socket(fileno=int(number)) for number in sys.argv[1].split(","))
    for end in (channel, *_reports):
        end.set_inheritable(False)
    imports = partial(preload, sys.argv[2:])
    _serve_after(imports, channel, is_base=True)


def _serve_after(
    imports: Callable[[], None], channel: socket.socket, ready: Callable[[], None] = lambda: None, *, is_base: bool
) -> NoReturn:
    """Import modules, and be a fork server.

    :param imports: imports them.
    :param ready: called when that is done.
    :param is_base: whether this process has imported nothing that was learned.
    """
    stamps = Stamps(with_directories=is_base)
    began, memory = time.process_time(), private_memory()
    try:
        imports()
        gc.collect()
        gc.freeze()  # this memory is shared with all forked processes, and a collection would touch every page of it
        memory = max(0, private_memory() - memory)
        use_huge_pages()
    except BaseException as error:
        traceback.print_exc()
        end_what_was_started()
        _send(channel, failed=f"{type(error).__name__}: {error}"[:2000], module=getattr(error, "module", None))
        os._exit(1)
    import_report.begin(_reports[0] if _reports else None, is_base=is_base)
    ready()
    stamps.note_imports(_watched_files())
    used = {"seconds": round(time.process_time() - began, 3), "memory": memory}
    ForkServer(channel, stamps).serve(used)


def _watched_files() -> Iterator[str]:
    """The files that modules depend on which were imported for the tasks."""
    for name in _preloaded:
        watched = getattr(sys.modules.get(name), "watched_files", None)
        if callable(watched):
            yield from watched()


def preload(modules: Sequence[str]) -> None:
    """Import modules, and call their ``preload``."""
    _preloaded.update(modules)
    for name in modules:
        module = importlib.import_module(name)
        prepare = getattr(module, "preload", None)
        if callable(prepare):
            prepare()
    others = other_threads()
    if others:
        raise RuntimeError(
            f"importing {', '.join(modules)} has started threads ({', '.join(others)}): fork would lose them"
        )


def preload_more(modules: Sequence[str]) -> None:
    """Import modules that nobody has named, and that have been tried before; nothing in them is called.

    :raises _CannotPreloadError: if one of them cannot be imported, or leaves something behind after all.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:
            raise _CannotPreloadError(name, f"{type(error).__name__}: {error}") from error
        others = other_threads()
        if others:
            raise _CannotPreloadError(name, f"it has started threads ({', '.join(others)})")
        if has_children():
            raise _CannotPreloadError(name, "it has started a process")


class _CannotPreloadError(Exception):
    """A module cannot be imported ahead."""

    def __init__(self, module: str, why: str) -> None:
        super().__init__(f"{module}: {why}")
        self.module = module


def _send(channel: socket.socket, **message: Any) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except ConnectionError:  # the manager is gone
        os._exit(0)


@dataclass
class _Shim:
    """A process that was forked."""

    channel: socket.socket
    token: str  # of its attempt
    cpu_seconds: float = 0.0  # that its earlier attempts have used
    used: tuple[float, int] | None = None  # what its last attempt has used, if it has said so before its end
    idle_since: float | None = None  # by the monotonic clock; None: it has an attempt


class ForkServer:
    """Forks shims at the request of the manager at the other end of a channel, until that is closed.

    :param stamps: of what has been imported.
    """

    def __init__(self, channel: socket.socket, stamps: Stamps) -> None:
        self._channel = channel
        self._stamps = stamps
        self._shims: dict[int, _Shim] = {}
        self._by_descriptor: dict[int, int] = {}  # the process at the other end
        self._poll = select.poll()
        self._wakeup: tuple[int, ...] = ()
        self._offspring = Offspring(self._leave, self._report_trial)

    def serve(self, used: dict[str, float]) -> NoReturn:
        """Answer requests, and report which attempts have ended.

        :param used: seconds of CPU and bytes of memory for the modules that have been imported.
        """
        wakeup, wake = self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for source in (wakeup, self._channel):
            self._poll.register(source, select.POLLIN)
        _send(self._channel, ready=True, pid=os.getpid(), **used)
        while True:
            ready = self._poll.poll(self._poll_milliseconds)
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
            for descriptor, _ in ready:
                if descriptor in self._by_descriptor:
                    self._hear(self._by_descriptor[descriptor])
            self._reap()
            self._answer()
            self._dismiss_idle()
            self._offspring.look()

    @property
    def _poll_milliseconds(self) -> float | None:
        due = [] if self._offspring.poll_after is None else [self._offspring.poll_after]
        if self._shims:
            due.append(_IDLE_SECONDS)
        return 1000 * min(due) + 1 if due else None

    def _answer(self) -> None:
        while True:
            given: list[int] = []
            try:
                data, given = handover.receive(self._channel, MAX_MESSAGE, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:  # the manager is gone, or needs this process no more
                self._offspring.end_trials()
                os._exit(0)
            request = json.loads(data)
            if "dismiss" in request:
                self._dismiss(request["dismiss"])
            elif "generation" in request:
                self._make_generation(request["generation"], socket.socket(fileno=given[0]))
            elif "check" in request:
                self._check()
            elif "trial" in request:
                self._try(request["trial"], request["after"], request["seconds"])
            else:
                self._start(request)

    def _check(self) -> None:
        """Report it if what has been imported has changed on the disk."""
        path, is_settled = self._stamps.what_has_changed()
        if path:
            _send(self._channel, changed=path, settled=is_settled)

    def _try(self, names: list[str], after: list[str], seconds: float) -> None:
        """Fork a process that tries whether modules may be imported ahead."""

        def run(word: socket.socket) -> None:
            from airflow_provider_air_executor.engines.local.learning import trial

            begin_trial()
            word.send(trial.run(names, after).to_json().encode())
            end_what_was_started()

        try:
            self._offspring.fork(run, seconds, is_trial=True)
        except OSError as error:
            _send(self._channel, tried="", error=error.strerror)

    def _make_generation(self, modules: list[str], channel: socket.socket) -> None:
        """Fork a process that imports more modules, and then serves as this one does."""

        def become(word: socket.socket) -> None:
            def ready() -> None:
                word.close()
                die_with_parent(None)

            _serve_after(partial(preload_more, modules), channel, ready, is_base=False)

        with channel:
            try:
                self._offspring.fork(become, IMPORT_SECONDS)
            except OSError as error:
                _send(channel, failed=f"no process can be forked: {error.strerror}")

    def _start(self, request: dict[str, Any]) -> None:
        """Give an attempt to a shim that waits, or to a new one."""
        pid = request.pop("shim", None)
        shim = self._shims.get(pid)
        if shim is not None and shim.idle_since is not None:
            request["token"] = identity_from_now(pid)
            with contextlib.suppress(OSError):  # it has been killed
                handover.send(shim.channel, json.dumps(request).encode(), [self._channel.fileno()])
                shim.idle_since, shim.token = None, request["token"]
                _send(self._channel, key=request["key"], pid=pid, token=shim.token)
                return
        ends: tuple[socket.socket, ...] = ()
        try:
            ours, theirs = ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHANNEL_BYTES)
            pid = os.fork()
        except OSError as error:
            for end in ends:
                end.close()
            _send(self._channel, key=request["key"], error=error.strerror)
            return
        if pid == 0:
            self._become_shim(request, theirs, ours)
        theirs.close()
        shim = self._shims[pid] = _Shim(ours, identity(pid))
        self._by_descriptor[ours.fileno()] = pid
        self._poll.register(ours, select.POLLIN)
        _send(self._channel, key=request["key"], pid=pid, token=shim.token)

    def _report_trial(self, outcome: bytes, status: int, is_late: bool) -> None:
        _send(self._channel, tried=outcome.decode(errors="replace"), status=status, late=is_late)

    def _leave(self) -> None:
        """Close what belongs to the fork server alone, in a process that it has forked."""
        signal.set_wakeup_fd(-1)
        for descriptor in self._wakeup:
            os.close(descriptor)
        for end in (self._channel, *(shim.channel for shim in self._shims.values())):
            end.close()

    def _become_shim(self, request: dict[str, Any], channel: socket.socket, other_end: socket.socket) -> NoReturn:
        try:
            held = os.dup(self._channel.fileno())
            self._leave()
            self._offspring.leave()
            other_end.close()
            request["token"] = identity(os.getpid())
            ForkedProcess(channel, _preloaded, held).serve(request)
        finally:
            os._exit(1)

    def _hear(self, pid: int) -> None:
        """Report that an attempt has ended whose shim stays."""
        shim = self._shims[pid]
        with contextlib.suppress(OSError):
            data = shim.channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            if not data:
                self._close(shim)  # it ends
                return
            message = json.loads(data)
            if not message["stays"]:
                shim.used = message["used"]
                return
            shim.idle_since = time.monotonic()
            shim.cpu_seconds += message["used"][0]
            _send(self._channel, ended=pid, status=message["code"] << 8, used=message["used"], idle=True)

    def _close(self, shim: _Shim) -> None:
        """Have a shim end when it has no attempt."""
        if shim.channel.fileno() >= 0:
            self._poll.unregister(shim.channel)
            del self._by_descriptor[shim.channel.fileno()]
            shim.channel.close()

    def _dismiss(self, pid: int) -> None:
        """Have a shim end that waits for another attempt; it has none from now on."""
        shim = self._shims.get(pid)
        if shim is not None and shim.idle_since is not None:
            self._close(shim)

    def _dismiss_idle(self) -> None:
        now = time.monotonic()
        idle = {pid: now - shim.idle_since for pid, shim in self._shims.items() if shim.idle_since is not None}
        for place, (pid, seconds) in enumerate(sorted(idle.items(), key=lambda each: each[1])):
            if seconds > (_KEPT_SECONDS if place < _KEPT else _IDLE_SECONDS):
                self._dismiss(pid)

    def _reap(self) -> None:
        """Report how shims have ended, and kill the processes that a killed one has left behind."""
        while self._shims or self._offspring:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return
            pid = found.si_pid
            shim = self._shims.get(pid)
            if shim is not None and shim.channel.fileno() >= 0:
                self._hear(pid)  # its last words, if there are any
            if found.si_code != os.CLD_EXITED and shim is not None:
                # Not reaped yet, so that the number of the session is still its own.
                kill_started_by(shim.token, pid, has_just_ended=True)
            reaped = self._offspring.forget(pid)
            _, status, used = os.wait4(pid, 0)
            if reaped is not None:
                reaped(status)
            if shim is not None:
                del self._shims[pid]
                self._close(shim)
                if shim.idle_since is None:
                    # What others have used for its earlier attempts counts there, and is not in its own numbers.
                    rest = max(0.0, used.ru_utime + used.ru_stime - shim.cpu_seconds)
                    numbers = shim.used or (rest, used.ru_maxrss)
                    _send(self._channel, ended=pid, status=status, used=numbers)


if __name__ == "__main__":
    main()
