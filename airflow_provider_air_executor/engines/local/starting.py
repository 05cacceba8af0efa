"""How attempts of this machine start: forked from what has imported their module, by a launcher, or by a shell."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial

from airflow_provider_air_executor.engines.local.attempt import Forking, LocalAttempt
from airflow_provider_air_executor.engines.local.endings import say_cold
from airflow_provider_air_executor.engines.local.holdings import Holdings
from airflow_provider_air_executor.engines.local.launching import Launching
from airflow_provider_air_executor.engines.local.memory import MemoryLimits
from airflow_provider_air_executor.engines.local.shells import Shells
from airflow_provider_air_executor.engines.local.warm import ForkServerClient
from airflow_provider_air_executor.engines.protocol import Attempt, ResourceExhaustedError, SpawnError
from airflow_provider_air_executor.engines.shim import task_variables
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.paths import WORK
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage

_WARM = "warm"  # the runner of tasks that are forked


class AttemptPaths:
    """The paths of the files of attempts, as text: joining paths would take as long as the rest of a start."""

    def __init__(self, store: JobStore, holdings: Holdings) -> None:
        self.store, self._holdings = store, holdings
        self._last = ("", "")

    def directory(self, job_name: str) -> str:
        """The directory of a job."""
        if self._last[0] != job_name:
            self._last = job_name, str(self.store.paths(job_name).directory)
        return self._last[1]

    def record(self, attempt: Attempt) -> str:
        """The record of an attempt."""
        return f"{self.directory(attempt.job_name)}/runs/{attempt.task_id}.{attempt.number}"

    def words(self, attempt: Attempt, task: Task, started_at: datetime) -> list[str]:
        """What describes an attempt to who starts it: record, time, log, the directory to run in, and the command."""
        log_path = f"{self.directory(attempt.job_name)}/logs/{attempt.task_id}.log"
        return [self.record(attempt), started_at.isoformat(), log_path, task.cwd or "", task.command, *task.args]

    def variables(self, attempt: Attempt) -> dict[str, str]:
        """The environment variables that describe a task to itself."""
        found = task_variables(attempt, self.directory(attempt.job_name), f"{self.record(attempt)}.output")
        found.update(self._holdings.variables(attempt))
        return found


class Starts:
    """Starts attempts.

    :param attempts: all that have been started, by themselves.
    :param shell_ended: called when a shell has ended.
    """

    def __init__(
        self,
        paths: AttemptPaths,
        warm: ForkServerClient,
        launching: Launching,
        shells: Shells,
        memory: MemoryLimits,
        attempts: dict[Attempt, LocalAttempt],
        shell_ended: Callable[[LocalAttempt, int, Usage | None], None],
    ) -> None:
        self.paths = paths
        self.launching, self.shells = launching, shells
        self._warm, self._memory = warm, memory
        self._attempts = attempts
        self._shell_ended = shell_ended

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        """Start an attempt.

        :raises SpawnError: if the command is not there, or may not be run.
        :raises ResourceExhaustedError: if the machine is short of something.
        """
        found, words, variables = self._prepare(attempt, task, started_at)
        if task.runner == _WARM:
            why_cold = self._warm.why_cold(task)
            if not why_cold:
                with _starting():
                    os.close(files.open_log(words[2]))
                found.forking = Forking(task, words)
                self._attempts[attempt] = found
                self._warm.fork(attempt, task, words, variables, self._memory.make_group(found, task, words[1]))
                return
            say_cold(self.paths.store, attempt, why_cold)
        if not self._launch(found, task, words, variables):
            self.start_shell(found, task, words)

    def start_after(self, before: Attempt, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Have an attempt started when another one has ended, see :meth:`.LocalEngine.start_after`."""
        found, words, variables = self._prepare(attempt, task, started_at)
        return task.runner != _WARM and self._launch(found, task, words, variables, before)

    def _prepare(
        self, attempt: Attempt, task: Task, started_at: datetime
    ) -> tuple[LocalAttempt, list[str], Mapping[str, str]]:
        """An attempt, and the words and the variables for who starts it; its result has a free place."""
        found = LocalAttempt(attempt, self.paths.record(attempt))
        _remove_output(f"{found.record_path}.output")
        return found, self.paths.words(attempt, task, started_at), self.paths.variables(attempt)

    def _launch(
        self,
        found: LocalAttempt,
        task: Task,
        words: list[str],
        variables: Mapping[str, str],
        before: Attempt | None = None,
    ) -> bool:
        """Have the command itself started, if it needs no shell."""
        own = f"{self.paths.directory(found.attempt.job_name)}/{WORK}"
        launches = self.launching.start
        if self._memory.needs_shell(task) or not launches(found.attempt, task, words, variables, own, before):
            return False
        found.forking = Forking(task, words)
        self._attempts[found.attempt] = found
        return True

    def start_shell(self, found: LocalAttempt, task: Task, words: list[str]) -> None:
        """Have a shell run the command of an attempt."""
        with self._memory.in_group(found, task, words[1]) as entry, _starting():
            os.close(files.open_log(words[2]))
            variables, ended = self.paths.variables(found.attempt), partial(self._shell_ended, found)
            found.pid, found.token = self.shells.start(words, variables, task, ended, entry)
        found.is_our_shell = True
        self._attempts[found.attempt] = found


def _remove_output(path: str) -> None:
    """Remove what an earlier run of a job that was reset by hand has left where this one may leave its result.

    :raises SpawnError: if it is no file.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (*files.TRANSIENT, *files.FORBIDDEN):
            raise
        raise SpawnError(f"{path} is in the way of its result: {error.strerror}") from error


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Start a process.

    :raises ResourceExhaustedError: if that may be possible later.
    :raises SpawnError: if it is not.
    :raises OSError: if it is not possible for this job for the moment; the manager tries it again.
    """
    try:
        yield
    except OSError as error:
        if error.errno in files.SHORTAGE:
            raise ResourceExhaustedError(error.strerror) from error
        if error.errno in (*files.AWAY, *files.FORBIDDEN):
            raise
        if error.errno == errno.E2BIG:
            raise SpawnError("the arguments or the environment are too long for this system") from error
        raise SpawnError(f"the log or the shell cannot be opened: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise SpawnError(f"an argument cannot be encoded for this system: {error}") from error
