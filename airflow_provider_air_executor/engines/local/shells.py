"""Starts the shells that run commands, see :mod:`..shim`.

Starting a shell takes longer than all else that the manager does for a task, so one is on standby: it waits at a pipe
for its only task. A manager that dies closes the pipe, and the shell ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import signal
import sys
import termios
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.shim import FIND, script_here
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system.environment import RUN_VARIABLE, default_signals, of_command
from airflow_provider_air_executor.system.processes import shell_token

_SHELL = "/bin/sh"
_NO_INPUT = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
_NO_OUTPUT = ((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0), (os.POSIX_SPAWN_DUP2, 1, 2))
_COMMAND = 4  # its index in the words of a shell


class Standby(NamedTuple):
    """A shell that waits for its task."""

    pid: int
    token: str
    pipe: int  # where it reads what to do


class Shells:
    """Starts a shell for each task.

    :param environment: what the commands inherit.
    :param children: calls back when a shell has ended.
    """

    def __init__(self, environment: Mapping[str, str], children: Children) -> None:
        self._environment = environment
        self._children = children
        # As the system wants it, which takes longer than all else in starting a shell if it is done for each.
        self._encoded = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        self._script = script_here(environment)
        self._default_signals = default_signals()
        self._standby: Standby | None = None
        self._may_prepare = True
        self._standby_reads = False  # whether a shell on standby was seen to read its pipe

    def start(
        self,
        words: list[str],
        variables: Mapping[str, str],
        task: Task,
        ended: Callable[[int, Usage | None], None],
        entry: str = "",
    ) -> tuple[int, str]:
        """Start a shell that runs a command, in a session of its own: its process id, and its token.

        :param words: the record, the time, the log, the directory to run in or nothing, the command, its arguments.
        :param variables: the environment variables that describe the task.
        :param task: what says which other ones there are.
        :param ended: called with the status when it has ended, and what it has used.
        :param entry: the file by which a process enters the control group of the attempt, if it has one.
        :raises OSError: if it cannot be started.
        """
        is_common = task.append_env and not task.env
        # It enters by itself, before anything else: moving a process may take long, and the manager must not wait.
        enter = f"command echo 0 2>/dev/null >|{shlex.quote(entry)} || :\n" if entry else ""
        started = self._hand_over(variables, words, enter) if is_common else None
        if started is None:
            token = shell_token()
            own = of_command(self._environment, task.env, append=task.append_env)
            script = self._script if task.append_env else script_here(own)
            arguments = ["-c", f'{enter}{FIND}{script}shift; run "$@"', "air-executor-shim", token, *words]
            started = self._spawn(arguments, {**own, **variables}, token, _NO_INPUT), token
        self._children.add(started[0], lambda _pid, status: ended(status, self._children.usage))
        return started

    def _spawn(
        self, arguments: list[str], environment: Mapping[Any, Any], token: str, standard_input: tuple[object, ...]
    ) -> int:
        """Start ``sh``: its process id.

        :param environment: names and values, as str or as bytes.
        """
        return os.posix_spawn(
            _SHELL,
            ["sh", *arguments],
            {**environment, RUN_VARIABLE: token},
            file_actions=[standard_input, *_NO_OUTPUT],
            setsid=True,
            setsigdef=self._default_signals,
            setsigmask=(),  # the parent of the manager may have blocked some
        )

    def prepare(self) -> None:
        """Start a shell that waits for the next task, if there is none.

        One that has ended without a task is not replaced before the next start: where no shell works, we do not spin.
        """
        if self._standby is not None or not self._may_prepare:
            return
        self._may_prepare = False
        token = shell_token()
        with contextlib.suppress(OSError):  # then the next one is started when there is a task
            task, pipe = os.pipe()
            try:
                os.set_blocking(pipe, False)
                os.write(pipe, os.fsencode(self._script))
                arguments = ["-s", "air-executor-shim", token]
                pid = self._spawn(arguments, self._encoded, token, (os.POSIX_SPAWN_DUP2, task, 0))
                self._standby = Standby(pid, token, pipe)
                self._children.add(pid, self._standby_ended)
            except OSError:
                os.close(pipe)
                raise
            finally:
                os.close(task)

    def _hand_over(self, variables: Mapping[str, str], words: list[str], enter: str) -> tuple[int, str] | None:
        """Give a task to the shell on standby; None if there is none that can take it."""
        self._may_prepare = True
        if self._standby is None:
            return None
        given = _quoted([*variables.values(), *words])
        exports = " ".join(map("=".join, zip(variables, given, strict=False)))
        find = "" if "/" in words[_COMMAND] else FIND  # the shells on standby need not learn it, each of them
        # In braces, so that half of it, should that ever arrive, is not a command.
        text = os.fsencode(f"{{ {enter}{find}export {exports}; run {' '.join(given[len(variables) :])}; }}\n")
        if len(text) > select.PIPE_BUF:  # more could be written in part
            return None
        pid, token, pipe = self._standby
        self._standby_reads = self._standby_reads or _has_been_read(pipe)
        if not self._standby_reads:  # it has just begun, or it is one that does not know how to
            return None
        try:
            os.write(pipe, text)
        except OSError:  # it has ended, or reads nothing
            return None
        self._standby = None
        os.close(pipe)
        return pid, token

    def _standby_ended(self, pid: int, status: int) -> None:
        if self._standby is not None and pid == self._standby.pid:
            os.close(self._standby.pipe)
            self._standby = None

    def close(self) -> None:
        """End the shell on standby. Attempts go on."""
        if self._standby is not None:
            os.close(self._standby.pipe)
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._standby.pid, signal.SIGKILL)
                os.waitpid(self._standby.pid, 0)
            self._standby = None


def _quoted(words: list[str]) -> list[str]:
    """Words as ``sh`` is to be given them. None holds a NUL; one by one they would take longer than all else here."""
    quoted = "\0".join(words).replace("'", "'\"'\"'")
    return [f"'{word}'" for word in quoted.split("\0")]


def _has_been_read(pipe: int) -> bool:
    """Whether what was written into a pipe has been read."""
    return not int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
