"""Processes that need not import what they run, since they are forked from one that has: ``air-executor``, and Airflow.

Importing takes most of the processor time that starting a manager costs, and the tests start many hundreds; an Airflow
is four processes that import the same. What such a process runs is the same: its ``__main__`` is the module, with
arguments, environment, directory and descriptors of its own. What it does not have is its own command line in
``/proc``; the environment there is that of the process it was forked from.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

MODULE = "airflow_provider_air_executor.manager.cli"
_IMPORTED = (
    MODULE,
    "airflow_provider_air_executor.manager.loop",
    "airflow_provider_air_executor.engines.local.engine",
    "airflow_provider_air_executor.manager.settings",
    "airflow_provider_air_executor.manager.cli.display",
    "inotify_simple",
    "yaml",
)
_MOST = 1_000_000  # bytes of a request
# What Python itself reads at its start.
_READ_AT_START = ("LANG", "LC_", "PYTHON")
_PATH = "PYTHONPATH"  # but this can be made up for


class Server:
    """A process that has imported a module, and is forked for each process that is to run it.

    :param module: which is run as ``python -m`` does it.
    :param imported: all that is imported before.
    :param environment: all that it has; default: that of this process.
    """

    def __init__(self, module: str, imported: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.owner = os.getpid()
        self.module = module
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *imported],
                env=environment,
                pass_fds=[theirs.fileno()],
            )

    def fork(self, request: Mapping[str, object], descriptors: list[int]) -> int:
        """Let it fork: the process id."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._socket.sendmsg([json.dumps({**request, "module": self.module}).encode()], rights)
        return int(self._socket.recv(100))

    def close(self) -> None:
        """End it. What it has forked goes on."""
        if os.getpid() == self.owner:
            self._socket.close()
            self._process.wait()


class Forked(subprocess.Popen[str]):
    """A process that a server has forked.

    :param arguments: of what the server runs.
    :param environment: all that it has.
    :param descriptors: its standard input, output and error.
    :param patch: code that it runs before it begins.
    :param start_new_session: whether it leads a session of its own.
    """

    def __init__(
        self,
        server: Server,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        *,
        patch: str = "",
        start_new_session: bool = False,
    ) -> None:
        self._child_created = False  # as far as Popen is concerned, whose child it is not
        self.args = [server.module, *arguments]
        self.returncode = None
        self.stdin = self.stdout = self.stderr = None
        self._status, status = os.pipe()
        try:
            request = {
                "arguments": list(arguments),
                "environment": dict(environment),
                "cwd": os.getcwd(),
                "patch": patch,
                "start_new_session": start_new_session,
            }
            self.pid = server.fork(request, [*descriptors, status])
        finally:
            os.close(status)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code.

        :raises subprocess.TimeoutExpired: if it does not end in so many seconds.
        """
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            told = os.read(self._status, 8)
            os.close(self._status)
            # Who would have told it is gone, and so is everything that this run has started.
            self.returncode = int.from_bytes(told, "little", signed=True) if told else -signal.SIGKILL
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """What it has written until it has ended, and until all are gone that have its descriptors."""
        assert input is None
        assert self.stderr is not None
        written: dict[str, str] = {}
        readers = []
        for name, pipe in (("stdout", self.stdout), ("stderr", self.stderr)):
            if pipe is not None:
                reader = threading.Thread(target=lambda name=name, pipe=pipe: written.update({name: pipe.read()}))
                reader.start()
                readers.append(reader)
        self.wait(timeout)
        for reader in readers:
            reader.join()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        return written.get("stdout", ""), written["stderr"]

    def __del__(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(OSError):
                os.close(self._status)


class Prepared(Forked):
    """A process as :class:`subprocess.Popen` starts it, with ``text=True``; its standard error can be read.

    :param arguments: of ``air-executor``, or of what the server runs.
    :param environment: all that it has.
    :param text: what it can read, at most some ten thousand characters.
    :param patch: code that it runs before it begins.
    :param stdout: whether its output can be read; otherwise it goes to where that of this process goes.
    :param server: default: that of ``air-executor``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        text: str = "",
        patch: str = "",
        stdout: bool = False,
        server: Server | None = None,
    ) -> None:
        with contextlib.ExitStack() as ours:
            given, giving = os.pipe()
            ours.callback(os.close, given)
            with open(giving, "w", encoding="utf-8") as file:
                file.write(text)
            errors, error = os.pipe()
            ours.callback(os.close, error)
            outputs, output = os.pipe() if stdout else (None, 1)
            if outputs is not None:
                ours.callback(os.close, output)
            super().__init__(server or _server(), arguments, environment, [given, output, error], patch=patch)
            self.stderr = open(errors, encoding="utf-8")  # noqa: SIM115
            if outputs is not None:
                self.stdout = open(outputs, encoding="utf-8")  # noqa: SIM115


def can_be_prepared(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment would be the same if it were forked."""

    def read_at_start(variables: Mapping[str, str]) -> dict[str, str]:
        names = [name for name in variables if name.startswith(_READ_AT_START) and name != _PATH]
        return {name: variables[name] for name in names}

    return sys.platform.startswith("linux") and read_at_start(environment) == read_at_start(os.environ)


in_use = False  # whether the parts of an Airflow are forked, too
_servers: list[Server] = []


def _server() -> Server:
    if not _servers or _servers[0].owner != os.getpid():
        _servers[:] = [Server(MODULE, _IMPORTED)]
    return _servers[0]


def close() -> None:
    """No more are started."""
    while _servers:
        _servers.pop().close()


# -- the other side ----------------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> None:
    listed = os.listdir("/proc/self/fd")
    opened_before = {number for number in listed if os.path.exists(f"/proc/self/fd/{number}")}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is requests:
                    data, descriptors, _, _ = socket.recv_fds(requests, _MOST, 4)
                    if not data:
                        return
                    pid = os.fork()
                    if pid == 0:
                        for number in set(os.listdir("/proc/self/fd")) - opened_before:
                            if int(number) not in descriptors:
                                with contextlib.suppress(OSError):  # that of the listing itself
                                    os.close(int(number))
                        requests.close()
                        _run(json.loads(data), descriptors)
                    for descriptor in descriptors[:3]:
                        os.close(descriptor)
                    requests.send(str(pid).encode())
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, descriptors[3]))
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                pid, status = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(status, code.to_bytes(8, "little", signed=True))
                os.close(status)


def _run(request: Mapping[str, Any], descriptors: list[int]) -> NoReturn:
    """Be the process that was asked for."""
    code = 1
    try:
        module: str = request["module"]
        if request["start_new_session"]:
            os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            if descriptor > 2:
                os.close(descriptor)
        os.chdir(request["cwd"])
        path = request["environment"].get(_PATH, "")
        if path != os.environ.get(_PATH, ""):
            sys.path[1:1] = filter(None, path.split(os.pathsep))
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [module, *request["arguments"]]
        sys.modules.pop(f"{module}.__main__", None)  # as -m does, it is run anew
        try:
            exec(request["patch"], {})
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:  # noqa: BLE001 - as the interpreter does
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    for imported in sys.argv[2:]:
        __import__(imported)
    gc.freeze()  # or each of them has a copy of all these objects as soon as it looks for garbage
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nobody needs a traceback of this one
    _serve(socket.socket(fileno=int(sys.argv[1])))
