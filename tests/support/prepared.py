"""Processes of the command line ``air-executor`` that need not import it, since they are forked from one that has.

Importing takes most of the processor time that starting a manager costs, and the tests start many hundreds. What such
a process runs is the same: its ``__main__`` is the module, with arguments, environment, directory and descriptors of
its own. What it does not have is its own command line and environment in ``/proc``.
"""

from __future__ import annotations

import array
import atexit
import contextlib
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
from typing import NoReturn

MODULE = "airflow_provider_air_executor.manager.cli"
_IMPORTED = (MODULE, "airflow_provider_air_executor.manager.manager")
_MOST = 1_000_000  # bytes of a request
# What Python itself reads at its start.
_READ_AT_START = ("LANG", "LC_", "PYTHON")


class Prepared(subprocess.Popen[str]):
    """A process as :class:`subprocess.Popen` starts it, with ``text=True``.

    :param arguments: of ``air-executor``.
    :param environment: all that it has.
    :param text: what it can read, at most some ten thousand characters.
    :param stdout: whether its output can be read; otherwise it goes to where that of this process goes.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, text: str = "", stdout: bool = False
    ) -> None:
        self._child_created = False  # as far as Popen is concerned, whose child it is not
        self.args = [MODULE, *arguments]
        self.returncode = None
        self.stdin = self.stdout = None
        with contextlib.ExitStack() as ours:
            given, giving = os.pipe()
            ours.callback(os.close, given)
            with open(giving, "w", encoding="utf-8") as file:
                file.write(text)
            errors, error = os.pipe()
            ours.callback(os.close, error)
            self._status, status = os.pipe()
            ours.callback(os.close, status)
            output = 1
            if stdout:
                outputs, output = os.pipe()
                ours.callback(os.close, output)
                self.stdout = open(outputs, encoding="utf-8")  # noqa: SIM115
            self.stderr = open(errors, encoding="utf-8")  # noqa: SIM115
            request = {"arguments": list(arguments), "environment": dict(environment), "cwd": os.getcwd()}
            self.pid = _server().fork(request, [given, output, error, status])

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


def can_be_prepared(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment would be the same if it were forked."""

    def read_at_start(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_READ_AT_START)}

    return sys.platform.startswith("linux") and read_at_start(environment) == read_at_start(os.environ)


class _Server:
    """The one that has imported everything, of this process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def fork(self, request: object, descriptors: list[int]) -> int:
        """Let it fork: the process id."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._socket.sendmsg([json.dumps(request).encode()], rights)
        return int(self._socket.recv(100))

    def close(self) -> None:
        """End it. What it has forked goes on."""
        if os.getpid() == self.owner:
            self._socket.close()
            self._process.wait()


_servers: list[_Server] = []


def _server() -> _Server:
    if not _servers or _servers[0].owner != os.getpid():
        _servers[:] = [_Server()]
    return _servers[0]


def close() -> None:
    """No more are started."""
    while _servers:
        _servers.pop().close()


# -- the other side ----------------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> None:
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


def _run(request: Mapping[str, object], descriptors: list[int]) -> NoReturn:
    """Be the process that was asked for."""
    code = 1
    try:
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        os.closerange(3, 1000)
        os.chdir(str(request["cwd"]))
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        sys.argv = [MODULE, *request["arguments"]]  # type: ignore[misc]
        sys.modules.pop(MODULE)  # as -m does, it runs the module anew
        try:
            runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
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
    for module in _IMPORTED:
        __import__(module)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is forked has Python's own again
    requests = socket.socket(fileno=int(sys.argv[1]))
    _serve(requests)
