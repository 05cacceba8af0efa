"""The zygote of a supervisor: a process as it was before any task, from which the tasks of the supervisor are forked.

A supervisor that forks its tasks itself pays twice: all that it has changed since its own start is copied for the task,
and again for itself after each fork, page by page. The zygote changes nothing. What it forks has neither the token of
the task nor what an earlier task has left in the supervisor. It waits for the task, and tells the supervisor how that
has ended; if it is killed, the supervisor adopts the task, and waits itself.

It replaces a part of Airflow's (``WatchedSubprocess.start``), and is used only where that is as it is known here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from airflow_provider_air_executor.system import handover, process_family
from airflow_provider_air_executor.system.process_family import Used

_MAX_MESSAGE = 200_000  # bytes; a socket of this kind takes no longer ones by default
_DESCRIPTORS = 5  # of a request: its requests, standard output, standard error and log records; where we write
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_SECONDS = 0.01  # between two looks at a task, while somebody waits for its end
_FAILED = 124  # as Airflow's own child that fails before its task
_START = {"target", "logger", "use_exec", "new_process_group", "constructor_kwargs"}  # its parameters
_READERS = {"self", "stdout", "stderr", "requests", "logs", "data"}


@functools.cache
def is_possible() -> bool:
    """Whether Airflow starts the processes of tasks as it is known here (3.3)."""
    from airflow.sdk.execution_time import supervisor

    subprocess = supervisor.WatchedSubprocess
    return (
        sys.platform.startswith("linux")
        and hasattr(supervisor, "ProcessTracker")
        and all(hasattr(supervisor, name) for name in ("_fork_main", "_configure_logs_over_json_channel"))
        and set(inspect.signature(subprocess.start).parameters) == _START
        and set(inspect.signature(subprocess._register_pipe_readers).parameters) == _READERS  # noqa: SLF001
    )


class _KilledBy(int):
    """The exit code of a task that a signal has ended: Airflow says its name, if it has one, as psutil's codes do."""

    @property
    def name(self) -> str:
        """The name of the signal."""
        try:
            return signal.Signals(-self).name
        except ValueError:
            return f"signal {-self}"


class _CannotAskError(OSError):
    """The zygote is gone, or the task has an environment that is too long for a message."""


class Zygote:
    """A process that forks tasks, as the supervisor has it.

    :param begin: called in each task first, to renew what processes must not share.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._environment = dict(os.environ)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._channel.close()
                for descriptor in process_family.private:
                    os.close(descriptor)
                _serve(theirs, begin)
            finally:
                os._exit(1)
        theirs.close()
        process_family.private.add(self._channel.fileno())
        process_family.helpers.add(self.pid)

    def fork(self, sockets: list[socket.socket], *, new_process_group: bool) -> int:
        """Fork a task.

        :param sockets: its ends of the four pairs that join it to its supervisor.
        :return: its process id.
        :raises _CannotAskError: if the zygote cannot be asked for it.
        :raises OSError: if there can be no such process now.
        """
        message = {
            "group": new_process_group,
            "directory": os.getcwd(),
            "environment": {k: v for k, v in os.environ.items() if self._environment.get(k) != v},
            "unset": [name for name in self._environment if name not in os.environ],
        }
        data, answer = json.dumps(message).encode(), None
        if len(data) <= _MAX_MESSAGE:
            with contextlib.suppress(ConnectionError):
                handover.send(self._channel, data, [*(one.fileno() for one in sockets), 2])
                answer = self._receive()
        if answer is None:
            raise _CannotAskError(errno.EPIPE, "the process that forks tasks cannot be asked for one")
        if "error" in answer:
            raise OSError(answer["error"], os.strerror(answer["error"]))
        pid: int = answer["pid"]
        return pid

    def _receive(self, flags: int = 0) -> dict[str, Any] | None:
        data = self._channel.recv(_MAX_MESSAGE, flags)
        message: dict[str, Any] | None = json.loads(data) if data else None
        return message

    def wait(self, pid: int, timeout: float | None) -> int | None:
        """How the task that was forked last has ended, as :class:`subprocess.Popen` has it; None: not in time.

        :raises ChildProcessError: if that can not be known any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self._exit_code_of(pid)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_SECONDS)
        return code

    def _exit_code_of(self, pid: int) -> int | None:
        """How a task has ended; None: it runs. If its parent has ended it is our child."""
        try:
            ended = self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            ended = None
        if ended is not None:
            process_family.add_usage(Used(*ended["used"]))
            return os.waitstatus_to_exitcode(ended["status"])
        found, status, used = os.wait4(pid, os.WNOHANG)
        if not found:
            return None
        process_family.add_usage(_used(used))
        return os.waitstatus_to_exitcode(status)

    def is_alive(self) -> bool:
        """Whether it is there; one that has ended is reaped."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                return True
        self.close()
        return False

    def close(self) -> None:
        """Let it end."""
        process_family.helpers.discard(self.pid)
        process_family.private.discard(self._channel.fileno())
        self._channel.close()


def _used(used: Any) -> Used:
    return Used(used.ru_utime + used.ru_stime, used.ru_maxrss)


# -- in the zygote -----------------------------------------------------------------------------------------


def _serve(channel: socket.socket, begin: Callable[[], None]) -> NoReturn:
    """Fork one task after the other until the supervisor is gone; this is another process than the rest."""
    from airflow.sdk.execution_time import supervisor
    from airflow.sdk.execution_time.supervisor import _configure_logs_over_json_channel, _make_process_nondumpable

    # They are for the supervisor, in whose process group this one is.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    _make_process_nondumpable()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    hook = sys.excepthook
    _configure_logs_over_json_channel(nothing)  # which takes as long as the rest of the start of a task
    sys.excepthook, task_hook = hook, sys.excepthook

    def are_configured(log_fd: int) -> None:  # noqa: ARG001
        sys.excepthook = task_hook

    supervisor._configure_logs_over_json_channel = are_configured  # noqa: SLF001
    while True:
        data, descriptors = handover.receive(channel, _MAX_MESSAGE, _DESCRIPTORS)
        if not data:
            os._exit(0)
        message = json.loads(data)
        try:
            pid = os.fork()
        except OSError as error:
            channel.send(json.dumps({"error": error.errno}).encode())
            pid = -1
        if pid == 0:
            channel.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            _become_task(message, descriptors, nothing, begin)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            with contextlib.suppress(BrokenPipeError):
                channel.send(json.dumps({"pid": pid}).encode())
            _, status, used = os.wait4(pid, 0)
            with contextlib.suppress(BrokenPipeError):
                channel.send(json.dumps({"status": status, "used": _used(used)}).encode())


def _become_task(
    message: Mapping[str, Any], descriptors: list[int], log_records: int, begin: Callable[[], None]
) -> NoReturn:
    """Do what Airflow's supervisor does in the child that it forks.

    :param log_records: the descriptor to which log records are written.
    """
    from airflow.sdk.execution_time import supervisor

    try:
        *sockets, logs, log = descriptors
        os.dup2(logs, log_records, inheritable=False)
        os.close(logs)
        if message["group"]:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        for name in message["unset"]:
            os.environ.pop(name, None)
        os.environ.update(message["environment"])
        os.chdir(message["directory"])
        begin()
        requests, stdout, stderr = (socket.socket(fileno=descriptor) for descriptor in sockets)
        supervisor._fork_main(requests, stdout, stderr, log_records, supervisor._subprocess_main)  # noqa: SLF001
    except BaseException:  # there is no caller
        traceback.print_exc()
    finally:
        os._exit(_FAILED)


# -- what Airflow's supervisor has of it -------------------------------------------------------------------


def start_with(zygote: Callable[[], Zygote | None]) -> None:
    """Let Airflow's supervisor have its tasks forked by a zygote.

    :param zygote: gives the present one; None: the supervisor forks the task itself, as always.
    """
    from airflow.sdk.execution_time import supervisor
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess, WatchedSubprocess

    class Tracker(supervisor.ProcessTracker):
        """Tracks a task that was forked by a zygote."""

        ProcessNotFound = ProcessLookupError
        TimeoutExpired = TimeoutError

        def __init__(self, pid: int, of: Zygote) -> None:
            self._pid, self._zygote = pid, of

        @property
        def pid(self) -> int:
            return self._pid

        def send_signal(self, s: signal.Signals) -> None:
            os.kill(self._pid, s)

        def wait(self, timeout: float | None) -> int:
            code = self._zygote.wait(self._pid, timeout)
            if code is None:
                raise TimeoutError(f"process {self._pid} still runs")
            return _KilledBy(code) if code < 0 else code

    begin = WatchedSubprocess.start.__func__  # type: ignore[attr-defined]

    def start(cls: Any, *, target: Any = supervisor._subprocess_main, **kwargs: Any) -> Any:  # noqa: SLF001
        is_usual = issubclass(cls, ActivitySubprocess) and target is supervisor._subprocess_main  # noqa: SLF001
        found = zygote() if is_usual and not kwargs.get("use_exec") else None
        if found is None:
            return begin(cls, target=target, **kwargs)
        usual = {name: value for name, value in kwargs.items() if name != "use_exec"}
        with contextlib.suppress(_CannotAskError):
            return _start(cls, found, Tracker, **usual)
        return begin(cls, target=target, **kwargs)

    WatchedSubprocess.start = classmethod(start)  # type: ignore[assignment, method-assign, arg-type]


def _start(
    cls: Any, zygote: Zygote, tracker: Any, *, logger: Any = None, new_process_group: bool = False, **more: Any
) -> Any:
    import structlog

    pairs = [socket.socketpair() for _ in range(4)]
    (requests, stdout, stderr, logs), theirs = [one for one, _ in pairs], [one for _, one in pairs]
    try:
        pid = zygote.fork(theirs, new_process_group=new_process_group)
    finally:
        for end in theirs:
            end.close()
    if new_process_group:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
    process = cls(
        pid=pid,
        stdin=requests,
        process=tracker(pid, zygote),
        process_log=logger or structlog.get_logger(logger_name="task").bind(),
        start_time=time.monotonic(),
        new_process_group=new_process_group,
        **more,
    )
    process._register_pipe_readers(stdout, stderr, requests, logs, data={})
    return process
