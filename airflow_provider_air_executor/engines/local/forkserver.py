"""The fork server: imports modules once, and forks a process for each task that needs them.

The manager starts it, as ``python -m airflow_provider_air_executor.engines.local.forkserver DESCRIPTOR MODULE...``,
and talks to it through a socket: one JSON message each way, see :mod:`.warm`. When the manager is gone it ends. What it
has forked goes on: a forked process is the shim of its attempt. It leads a session of its own, claims the record, as
the shell of :mod:`..shim` does, and writes the exit code there.

A module that is imported for its tasks may have a function ``preload``, which is called once, to load ahead what the
module loads at its first use; and a function ``after_fork``, which is called in each forked process, to renew what
processes must not share, such as the state of a generator of random numbers.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import SPAWN, Record, claim
from airflow_provider_air_executor.system.environment import RUN_VARIABLE
from airflow_provider_air_executor.system.processes import identity, kill_started_by

# Threads that their libraries start anew in a forked process (os.register_at_fork).
_SURVIVING_THREADS = ("OtelPeriodicExportingMetricReader", "OtelBatch")
MAX_MESSAGE = 200_000  # bytes; a socket of this kind takes no longer ones by default
NOT_CLAIMED = 97
_CANNOT_RUN = 126


_preloaded: set[str] = set()  # modules that were imported for the tasks


def main() -> None:
    """Import the modules, and serve."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    try:
        preload(sys.argv[2:])
    except BaseException as error:
        traceback.print_exc()
        _send(channel, failed=f"{type(error).__name__}: {error}"[:2000])
        sys.exit(1)
    ForkServer(channel).serve()


def preload(modules: Sequence[str]) -> None:
    """Import modules, and call their ``preload``."""
    _preloaded.update(modules)
    for name in modules:
        module = importlib.import_module(name)
        prepare = getattr(module, "preload", None)
        if callable(prepare):
            prepare()
    others = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.name.startswith(_SURVIVING_THREADS)
    ]
    if others:
        raise RuntimeError(
            f"importing {', '.join(modules)} has started threads ({', '.join(others)}): fork would lose them"
        )
    gc.collect()
    gc.freeze()  # this memory is shared with all forked processes, and a collection would touch every page of it


def _send(channel: socket.socket, **message: Any) -> None:
    channel.send(json.dumps(message).encode())


class ForkServer:
    """Forks shims at the request of the manager at the other end of a channel, until that is closed."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._shims: set[int] = set()
        self._private: tuple[int, ...] = ()  # descriptors that each shim closes

    def serve(self) -> NoReturn:
        """Answer requests, and report which shims have ended."""
        wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._private = (wakeup, wake, self._channel.fileno())
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        _send(self._channel, ready=True)
        while True:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
            self._reap()
            self._answer()

    def _answer(self) -> None:
        while True:
            try:
                data = self._channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                os._exit(0)  # the manager is gone
            request = json.loads(data)
            try:
                pid = os.fork()
            except OSError as error:
                _send(self._channel, key=request["key"], error=error.strerror)
                continue
            if pid == 0:
                _become_shim(request, self._private)
            self._shims.add(pid)
            _send(self._channel, key=request["key"], pid=pid, token=identity(pid))

    def _reap(self) -> None:
        """Report how shims have ended, and kill the processes that a killed one has left behind."""
        while self._shims:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return
            pid = found.si_pid
            if found.si_code != os.CLD_EXITED and pid in self._shims:
                # Not reaped yet, so that the number of the session is still its own.
                kill_started_by(identity(pid), pid, has_just_ended=True)
            _, status = os.waitpid(pid, 0)
            if pid in self._shims:
                self._shims.discard(pid)
                _send(self._channel, ended=pid, status=status)


def _become_shim(request: dict[str, Any], private: Sequence[int]) -> NoReturn:
    """Run a task in this process, which has just been forked; it ends here."""
    code = NOT_CLAIMED
    try:
        signal.set_wakeup_fd(-1)
        for descriptor in private:
            os.close(descriptor)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        code = _run_recorded(request)
    except BaseException:  # there is no caller
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(code)


def _run_recorded(request: dict[str, Any]) -> int:
    """Claim the record of an attempt, run its task, and record how it has ended."""
    token = identity(os.getpid())
    started_at = datetime.fromisoformat(request["started_at"])
    record = claim(request["record"], Record(os.getpid(), started_at, token, None))
    why = f"the log {request['log']} cannot be opened"
    try:
        _open_standard_streams(request["log"])
        why = f"the directory {request['cwd']} (field cwd) cannot be entered"
        if request["cwd"]:
            os.chdir(request["cwd"])
    except OSError as error:
        os.write(record, os.fsencode(f"{SPAWN}{why}: {error.strerror}\n"))
        return _CANNOT_RUN
    code = _CANNOT_RUN
    try:
        os.environ.update(request["variables"])
        os.environ[RUN_VARIABLE] = token
        _begin_anew()
        code = run_module(request["module"], request["args"], is_safe=request["safe"])
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.write(record, f"{code}\n".encode())
    return code


def _open_standard_streams(log_path: str) -> None:
    log = files.open_log(log_path)
    os.set_blocking(log, True)  # as it is for any other program
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)


def _begin_anew() -> None:
    """Give this process what a fresh one has for itself, and forked ones would share."""
    numbers = sys.modules.get("numpy.random")
    if numbers is not None:
        numbers.seed()  # it is seeded when it is imported
    for name in _preloaded:
        after_fork = getattr(sys.modules.get(name), "after_fork", None)
        if callable(after_fork):
            after_fork()


def run_module(module: str, args: Sequence[str], *, is_safe: bool = True) -> int:
    """Do what ``python -m module args...`` does, in this process; its exit code.

    :param is_safe: whether modules of the working directory are not found, as with ``python -P``.
    """
    sys.argv = [module, *args]
    code: object = 0
    if not is_safe and not os.environ.get("PYTHONSAFEPATH"):
        others = _modules_of_its_own(os.getcwd())
        if others:
            print(  # noqa: T201 - the log of the task
                f"air-executor: a cold start, without a warm runner: {', '.join(others)} in the directory of the task "
                "would be imported instead of what has been imported already",
                flush=True,
            )
            code = subprocess.call([sys.executable, "-m", module, *args])
            return 128 - code if code < 0 else code
        sys.path.insert(0, os.getcwd())
    try:
        # The module has been imported already, on purpose.
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning, module="runpy")
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    _end()
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - as Python does
    return 1


def _end() -> None:
    """Do what Python does at its end: stop pools of threads, join threads, and call the registered functions."""
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            step()
        except BaseException:
            traceback.print_exc()


def _modules_of_its_own(directory: str) -> list[str]:
    """The modules of a directory that ``python -m`` would find there before those that have been imported here."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            name = entry.name.partition(".")[0]
            known = sys.modules.get(name)
            if known is None or name in sys.builtin_module_names or name in ("__main__", "site", "os", "sys"):
                continue
            spec = importlib.machinery.PathFinder.find_spec(name, [directory])
            if spec is not None and spec.origin is not None and spec.origin != getattr(known, "__file__", None):
                found.append(name)
    return sorted(found)


if __name__ == "__main__":
    main()
