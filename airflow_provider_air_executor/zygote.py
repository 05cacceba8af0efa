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
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from airflow_provider_air_executor import dag_files
from airflow_provider_air_executor.dag_files import DagFile, ExecutedFile
from airflow_provider_air_executor.system import handover, process_family
from airflow_provider_air_executor.system.process_family import Used
from airflow_provider_air_executor.system.processes import die_with_parent

_MAX_MESSAGE = 200_000  # bytes; a socket of this kind takes no longer ones by default
_DESCRIPTORS = 5  # of a request: its requests, standard output, standard error and log records; where we write
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_SECONDS = 0.01  # between two looks at a task, while somebody waits for its end
_FAILED = 124  # as Airflow's own child that fails before its task
_START = {"target", "logger", "use_exec", "new_process_group", "constructor_kwargs"}  # its parameters
_READERS = {"self", "stdout", "stderr", "requests", "logs", "data"}
_KEEP_SECONDS = 10.0  # that a process which has executed a DAG file waits for a task, or for the end of one
_WATCH_NICE = 10  # how much a process yields that executes a DAG file under watch
_WATCH_SECONDS = 120  # after which it is killed


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


class CannotAskError(OSError):
    """The zygote is gone, or the task has an environment that is too long for a message."""


class Zygote:
    """A process that forks tasks, as the supervisor has it.

    :param channel: to it.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self._environment = dict(os.environ)
        self._channel = channel
        self.pid = pid
        self._is_ready = True  # one that executes a DAG file first says when it is
        process_family.private.add(channel.fileno())

    @classmethod
    def start(cls, begin: Callable[[], None]) -> Zygote:
        """Fork a zygote.

        :param begin: called in each task first, to renew what processes must not share.
        """
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                channel.close()
                for descriptor in process_family.private:
                    os.close(descriptor)
                _Server(theirs, begin).begin()
            finally:
                os._exit(1)
        theirs.close()
        process_family.helpers.add(pid)
        return cls(channel, pid)

    def beget(self, dag_file: DagFile) -> Zygote:
        """Have it fork a zygote that executes a DAG file first: the tasks that are forked from that find it executed.

        :raises CannotAskError: if the zygote cannot be asked for it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                answer = self._ask({**self._setting(), "execute": dag_file._asdict()}, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        if answer is None or "error" in answer:
            ours.close()
            raise CannotAskError(errno.EPIPE, "the process that forks tasks cannot be asked for another one")
        begotten = Zygote(ours, answer["pid"])
        begotten._is_ready = False
        return begotten

    def watch(self, dag_file: DagFile) -> None:
        """Have a DAG file executed under watch, by a process that says what it has seen in a report and ends."""
        with contextlib.suppress(CannotAskError):
            self._ask({**self._setting(), "watch": dag_file._asdict()}, [])

    def is_ready(self, seconds: float) -> bool:
        """Whether it has executed its DAG file.

        :param seconds: how long to wait for that.
        :raises CannotAskError: if it cannot be used, and has ended.
        """
        if self._is_ready:
            return True
        if not select.select([self._channel], [], [], seconds)[0]:
            return False
        with contextlib.suppress(ConnectionError):
            self._is_ready = self._receive() is not None
        if self._is_ready:
            return True
        raise CannotAskError(errno.EPIPE, "the DAG file cannot be executed ahead of its tasks")

    def has_ended(self) -> bool:
        """Whether it is gone: one that has executed a DAG file ends when it is not needed for a while."""
        try:
            return not self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _setting(self) -> dict[str, Any]:
        """In what a process is to work: that of this one."""
        return {
            "directory": os.getcwd(),
            "environment": {k: v for k, v in os.environ.items() if self._environment.get(k) != v},
            "unset": [name for name in self._environment if name not in os.environ],
        }

    def _ask(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any] | None:
        """The answer to a request; None: there is none, for the zygote is gone, or the request is too long."""
        data = json.dumps(message).encode()
        if len(data) <= _MAX_MESSAGE:
            with contextlib.suppress(ConnectionError):
                handover.send(self._channel, data, descriptors)
                return self._receive()
        return None

    def fork(self, sockets: list[socket.socket], *, new_process_group: bool) -> int:
        """Fork a task.

        :param sockets: its ends of the four pairs that join it to its supervisor.
        :return: its process id.
        :raises CannotAskError: if the zygote cannot be asked for it.
        :raises OSError: if there can be no such process now.
        """
        message = {**self._setting(), "group": new_process_group}
        answer = self._ask(message, [*(one.fileno() for one in sockets), 2])
        if answer is None or "stale" in answer:
            raise CannotAskError(errno.EPIPE, "the process that forks tasks cannot be asked for one")
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

    def waits_for_end(self, seconds: float) -> bool:
        """Wait until it says that a task has ended, or is gone itself; False if it does neither in so many seconds."""
        return bool(select.select([self._channel], [], [], seconds)[0])

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
        try:
            found, status, used = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            if not _exists(pid):
                raise
            return None  # its parent is just ending
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


def _exists(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _used(used: Any) -> Used:
    return Used(used.ru_utime + used.ru_stime, used.ru_maxrss)


# -- in the zygote -----------------------------------------------------------------------------------------


class _Server:
    """What a zygote does.

    :param channel: to its supervisor.
    :param begin: called in each task first.
    """

    def __init__(self, channel: socket.socket, begin: Callable[[], None]) -> None:
        self._channel = channel
        self._begin = begin
        self._handlers: dict[signal.Signals, Any] = {}  # those of tasks
        self._log_records = -1  # the descriptor to which tasks write log records
        self._executed: ExecutedFile | None = None  # the DAG file that tasks find executed
        self._others: set[int] = set()  # processes that execute a DAG file, under watch or for its tasks

    def begin(self) -> NoReturn:
        """Prepare what tasks need, and fork one after the other until the supervisor is gone."""
        from airflow.sdk.execution_time import supervisor
        from airflow.sdk.execution_time.supervisor import _configure_logs_over_json_channel, _make_process_nondumpable

        # They are for the supervisor, in whose process group this one is.
        self._handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
        _make_process_nondumpable()
        nothing = self._log_records = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        hook = sys.excepthook
        _configure_logs_over_json_channel(nothing)  # which takes as long as the rest of the start of a task
        sys.excepthook, task_hook = hook, sys.excepthook

        def are_configured(log_fd: int) -> None:  # noqa: ARG001
            sys.excepthook = task_hook

        supervisor._configure_logs_over_json_channel = are_configured  # noqa: SLF001
        self._serve()

    def _serve(self) -> NoReturn:
        while True:
            self._wait_for(self._channel)
            data, descriptors = handover.receive(self._channel, _MAX_MESSAGE, _DESCRIPTORS)
            if not data:
                os._exit(0)
            message = json.loads(data)
            if "watch" in message:
                self._fork(message, descriptors, self._watch)
            elif "execute" in message:
                self._fork(message, descriptors, self._become_executed)
            elif self._executed is not None and self._executed.is_stale():
                _close(descriptors)
                self._say(stale=True)
                os._exit(0)
            else:
                self._run_task(message, descriptors)
            self._reap_others()

    def _wait_for(self, source: socket.socket | int) -> None:
        """Wait until something is readable. Who has executed a DAG file ends if that takes long: it has much memory."""
        if self._executed is not None and not select.select([source], [], [], _KEEP_SECONDS)[0]:
            os._exit(0)

    def _say(self, **message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._channel.send(json.dumps(message).encode())

    def _fork(
        self, message: dict[str, Any], descriptors: list[int], become: Callable[[dict[str, Any], list[int]], object]
    ) -> int | None:
        """Fork a process, and say which.

        :param become: what it does.
        :return: its process id; None: there is none.
        """
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._say(error=error.errno)
            _close(descriptors)
            return None
        if pid == 0:
            try:
                self._channel.close()
                if "group" not in message:  # it is no task
                    die_with_parent(parent)
                _settle(message)
                become(message, descriptors)
            except BaseException:  # there is no caller
                traceback.print_exc()
            finally:
                os._exit(_FAILED)
        _close(descriptors)
        if "group" not in message:
            self._others.add(pid)
        self._say(pid=pid)
        return pid

    def _run_task(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Fork a task, and say how it has ended; if this process ends before, the supervisor adopts the task."""
        pid = self._fork(message, descriptors, self._become_task)
        if pid is None:
            return
        if self._executed is not None:
            running = os.pidfd_open(pid)
            self._wait_for(running)
            os.close(running)
        _, status, used = os.wait4(pid, 0)
        self._say(status=status, used=_used(used))

    def _reap_others(self) -> None:
        self._others = {pid for pid in self._others if os.waitpid(pid, os.WNOHANG)[0] == 0}

    def _become_task(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        """Do what Airflow's supervisor does in the child that it forks."""
        from airflow.sdk.execution_time import supervisor

        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        *sockets, logs, log = descriptors
        os.dup2(logs, self._log_records, inheritable=False)
        os.close(logs)
        if message["group"]:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        self._begin()
        if self._executed is not None:
            self._executed.offer()
        requests, stdout, stderr = (socket.socket(fileno=descriptor) for descriptor in sockets)
        supervisor._fork_main(  # noqa: SLF001
            requests,
            stdout,
            stderr,
            self._log_records,
            supervisor._subprocess_main,  # noqa: SLF001
        )

    def _become_executed(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        """Execute a DAG file, and fork the tasks of it."""
        self._channel = socket.socket(fileno=descriptors[0])
        self._others.clear()
        self._begin()
        self._executed = dag_files.execute(DagFile(**message["execute"]), self._log_records)
        if self._executed is not None:
            self._say(ready=True)
            self._serve()

    def _watch(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        """Execute a DAG file under watch, and report what was seen."""
        os.nice(_WATCH_NICE)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(_WATCH_SECONDS)
        self._begin()
        dag_files.watch(DagFile(**message["watch"]))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _settle(message: Mapping[str, Any]) -> None:
    """Have the environment and the directory of the supervisor."""
    for name in message["unset"]:
        os.environ.pop(name, None)
    os.environ.update(message["environment"])
    os.chdir(message["directory"])


# -- what Airflow's supervisor has of it -------------------------------------------------------------------


def waits_for_end(tracker: Any, seconds: float) -> bool:
    """Wait for the end of a task, if a zygote has forked it.

    :param tracker: through which Airflow's supervisor follows the task.
    :return: whether there may be news of it.
    """
    its: Zygote | None = getattr(tracker, "zygote", None)
    return its is not None and its.waits_for_end(seconds)


def start_with(zygotes: Callable[[], Iterator[Zygote]]) -> None:
    """Let Airflow's supervisor have its tasks forked by a zygote.

    :param zygotes: gives those that can do it, the best first. If none can, the supervisor forks the task itself, as
        always.
    """
    from airflow.sdk.execution_time import supervisor
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess, WatchedSubprocess

    class Tracker(supervisor.ProcessTracker):
        """Tracks a task that was forked by a zygote."""

        ProcessNotFound = ProcessLookupError
        TimeoutExpired = TimeoutError

        def __init__(self, pid: int, of: Zygote) -> None:
            self._pid, self.zygote = pid, of

        @property
        def pid(self) -> int:
            return self._pid

        def send_signal(self, s: signal.Signals) -> None:
            os.kill(self._pid, s)

        def wait(self, timeout: float | None) -> int:
            code = self.zygote.wait(self._pid, timeout)
            if code is None:
                raise TimeoutError(f"process {self._pid} still runs")
            return _KilledBy(code) if code < 0 else code

    begin = WatchedSubprocess.start.__func__  # type: ignore[attr-defined]

    def start(cls: Any, *, target: Any = supervisor._subprocess_main, **kwargs: Any) -> Any:  # noqa: SLF001
        is_usual = issubclass(cls, ActivitySubprocess) and target is supervisor._subprocess_main  # noqa: SLF001
        usual = {name: value for name, value in kwargs.items() if name != "use_exec"}
        for found in zygotes() if is_usual and not kwargs.get("use_exec") else ():
            with contextlib.suppress(CannotAskError):
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
