"""A process that the fork server has forked: the shim of an attempt, and of later ones if its module allows that.

It leads a session of its own, claims the record of its attempt, as the shell of :mod:`..shim` does, runs a module, and
writes the exit code there. Then it ends, or it stays for the next attempt: if the module has a function ``renew`` that
puts right what a run of it changes and returns True, and if nothing is left of the attempt, no process and no thread.
So what is killed for the sake of one attempt never belongs to another one. Each attempt has a token of its own. Such a
module is run by its function ``main``, if it has one, which returns the exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import SPAWN, Record, Used, claim
from airflow_provider_air_executor.system import control_groups, handover, process_family
from airflow_provider_air_executor.system.environment import GPUS_VARIABLE, RUN_VARIABLE

MAX_MESSAGE = 200_000  # bytes; a socket of this kind takes no longer ones by default
NOT_CLAIMED = 97
# Threads that their libraries start anew in a forked process (os.register_at_fork).
SURVIVING_THREADS = ("OtelPeriodicExportingMetricReader", "OtelBatch")
_CANNOT_RUN = 126
_MAXRSS_BYTES = 1024  # the unit of ru_maxrss; forked processes are Linux's
_MOST_ATTEMPTS = 200  # of one process: what leaks goes with it
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class ForkedProcess:
    """This process, which has just been forked.

    :param channel: to the fork server. It brings the requests after the first one; when it is closed there are no more.
    :param preloaded: the modules that were imported for the tasks.
    :param held: a descriptor to be closed when the record of the attempt is claimed; each request brings another one.
    """

    def __init__(self, channel: socket.socket, preloaded: Iterable[str], held: int) -> None:
        self._channel = channel
        self._held = [held]
        self._preloaded = preloaded
        self._environment = dict(os.environ)
        self._directory = _working_directory()
        self._handlers: dict[signal.Signals, Any] = {}
        self._attempts = 0

    def serve(self, request: dict[str, Any]) -> NoReturn:
        """Run attempts until this process may not stay, or is not needed any more; it ends here."""
        code = NOT_CLAIMED
        try:
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.setsid()
            self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            process_family.renewals.append(self._begin_anew)
            if _renewal(request["module"]) is None or not process_family.can_list_children():
                # This attempt is its only one, and it has what others have.
                self._channel.close()
            else:
                process_family.may_stay = True
                process_family.private.add(self._channel.fileno())
            while True:
                code, stays, used = self._run_recorded(request)
                if self._channel.fileno() < 0:
                    break
                data, self._held = b"", []
                with contextlib.suppress(ConnectionError):  # the fork server has ended
                    self._channel.send(json.dumps({"code": code, "used": used, "stays": stays}).encode())
                    if stays:
                        data, self._held = handover.receive(self._channel, MAX_MESSAGE, 1)
                if not data:
                    if stays:
                        _end()
                    break
                code = NOT_CLAIMED
                self._begin_again()
                request = json.loads(data)
        except BaseException:  # there is no caller
            with contextlib.suppress(BaseException):
                traceback.print_exc()
        finally:
            os._exit(code)

    def _run_recorded(self, request: dict[str, Any]) -> tuple[int, bool, tuple[float, int]]:
        """Claim the record of an attempt, run its task, and record how it has ended.

        :return: its exit code, whether this process may stay for the next one, and what it has used.
        """
        before = _cpu_seconds()
        self._attempts += 1
        started_at = datetime.fromisoformat(request["started_at"])
        record = claim(request["record"], Record(os.getpid(), started_at, request["token"], None))
        process_family.private.add(record)
        for descriptor in self._held:
            os.close(descriptor)
        entry, home = request.get("group") or ("", "")
        if entry:
            control_groups.enter(entry, process_family.helpers)
        why = f"the log {request['log']} cannot be opened"
        try:
            _open_standard_streams(request["log"])
            why = f"the directory {request['cwd']} (field cwd) cannot be entered"
            if request["cwd"]:
                os.chdir(request["cwd"])
        except OSError as error:
            os.write(record, os.fsencode(f"{SPAWN}{why}: {error.strerror}\n"))
            return _CANNOT_RUN, False, _used_since(before)
        code, stays = _CANNOT_RUN, False
        try:
            os.environ.update(request["variables"])
            os.environ[RUN_VARIABLE] = request["token"]
            process_family.hint = request.get("hint") or {}
            self._begin_anew()
            code = run_module(request["module"], request["args"], is_safe=request["safe"])
            # What has been given graphics processors may have set them up, and would keep them.
            stays = code == 0 and GPUS_VARIABLE not in request["variables"] and self._is_as_before(request["module"])
            if stays and entry:
                stays = control_groups.enter(home, process_family.helpers)
            if not stays:
                _end()
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        seconds, memory = used = _used_since(before)
        os.write(record, f"{code}\n{Used(seconds, memory * _MAXRSS_BYTES).text}".encode())
        os.close(record)
        process_family.private.discard(record)
        return code, stays, used

    def _begin_anew(self) -> None:
        """Give this process what a fresh one has for itself, and forked ones would share."""
        numbers = sys.modules.get("numpy.random")
        if numbers is not None:
            numbers.seed()  # it is seeded when it is imported
        for name in self._preloaded:
            after_fork = getattr(sys.modules.get(name), "after_fork", None)
            if callable(after_fork):
                after_fork()

    def _is_as_before(self, module: str) -> bool:
        """Whether nothing is left of an attempt, so that this process may have another one."""
        renew = _renewal(module)
        if self._channel.fileno() < 0 or self._attempts >= _MOST_ATTEMPTS or renew is None:
            return False
        return renew() and not other_threads() and not process_family.has_other_children()

    def _begin_again(self) -> None:
        """Put right what an attempt has changed in this process."""
        if dict(os.environ) != self._environment:
            for name in os.environ.keys() - self._environment.keys():
                del os.environ[name]
            os.environ.update(self._environment)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        os.chdir(self._directory)


def _renewal(module: str) -> Callable[[], bool] | None:
    """What makes a process fit for another run of a module that has been imported; None if nothing does."""
    renew = getattr(sys.modules.get(module), "renew", None)
    return renew if callable(renew) else None


def other_threads() -> list[str]:
    """The names of the threads that this process has beside the main one, but for those that come back after a fork."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.name.startswith(SURVIVING_THREADS)
    ]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return "/"


def _cpu_seconds() -> float:
    """What this process has used so far, with the children that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _used_since(before: float) -> tuple[float, int]:
    """What an attempt has used: seconds, and the most memory of one of its processes, as getrusage(2) has it.

    :param before: what this process had used when it began.
    """
    others = process_family.take_usage()
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return _cpu_seconds() - before + others.cpu_seconds, others.max_rss or largest


def _open_standard_streams(log_path: str) -> None:
    log = files.open_log(log_path)
    os.set_blocking(log, True)  # as it is for any other program
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)


def run_module(module: str, args: Sequence[str], *, is_safe: bool = True) -> int:
    """Do what ``python -m module args...`` does until it ends, in this process; its exit code.

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
        main = getattr(sys.modules.get(module), "main", None)
        if _renewal(module) is not None and callable(main):
            code = main()
        else:
            # The module has been imported already, on purpose.
            warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning, module="runpy")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        _flush_output()
        traceback.print_exc()
        code = 1
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    _flush_output()
    print(code, file=sys.stderr)  # noqa: T201 - as Python does
    return 1


def _flush_output() -> None:
    """Write what was printed, as Python does before it says why it ends."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()


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
