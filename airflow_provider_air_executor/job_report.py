"""What an Airflow task says of its job: in its log while it waits, and in its log and XCom when the job has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_air_executor.exceptions import AirExecutorError, CorruptFileError, JobsAwayError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.levels import level_of
from airflow_provider_air_executor.jobs.models import Job, JobState, Task
from airflow_provider_air_executor.jobs.stream import LogStream
from airflow_provider_air_executor.results import results_of

if TYPE_CHECKING:
    from airflow.sdk import Context

_READER = "airflow"  # whose position in the logs of a job is kept
_STREAM_LIMIT = 10_000_000  # bytes
_LONGEST_PAUSE = 4  # intervals
_LOG_LINES = 20  # of what a task has printed, that are shown when the job has ended


class JobOutput(LogStream):
    """The output of a job's tasks for the log of the Airflow task; all processes that wait share its position.

    :param arrival: see :class:`~airflow_provider_air_executor.jobs.stream.LogStream`.
    """

    def __init__(self, jobs: Jobs, job_name: str, *, arrival: float = 0.0) -> None:
        limit = conf.getint("air_executor", "stream_limit", fallback=_STREAM_LIMIT)
        super().__init__(jobs, job_name, _READER, limit=limit if limit > 0 else None, arrival=arrival)
        self._tasks: tuple[Task, ...] | None = None
        self._silence = 0  # passes in a row in which there was nothing
        self.shown_at = 0.0  # the last call, on the monotonic clock

    def show(self, log: Any, *, is_changed: bool = True, is_over: bool = False) -> bool:
        """Log the lines that have come since the last call.

        :param is_changed: whether the job may have changed since then.
        :param is_over: whether it has ended.
        :return: False if they could not be read now.
        """
        self.shown_at = time.monotonic()
        try:
            if is_changed or self._tasks is None:
                self._tasks = self._jobs.get_tasks(self._job_name, at_once=True)
            is_silent = not self.follow(self._tasks, partial(log_line, log), is_over=is_over)
        except (AirExecutorError, OSError):
            return False  # not there yet, or half-written, or away; nothing is lost, and the next call reads it
        self._silence = self._silence + 1 if is_silent and not is_changed else 0
        return True

    def pause(self, interval: float) -> float:
        """Seconds until the next call, at most: an interval, and up to four while nothing is printed."""
        return interval * min(_LONGEST_PAUSE, 1 + self._silence)


def log_line(log: Any, line: str) -> None:
    """Log a line that a task has printed, with its id before it, at the level that the line has.

    One of less than INFO is logged as INFO where the log would drop it otherwise.
    """
    level = level_of(line.partition(" | ")[2])
    log.log(level if level >= logging.INFO or log.isEnabledFor(level) else logging.INFO, "%s", line)


def lines_at_end(stream: LogStream | None) -> int:
    """How many lines of each log are shown when a job has ended: none, if all of them have been shown.

    :param stream: the one that has shown them, if there was one.
    """
    return 0 if stream is not None and not stream.is_cut else _LOG_LINES


class JobReport:
    """Says of a job how far it is, and how it has ended.

    :param log: the logger with which it says so.
    :param stream_logs: whether what the tasks print is shown as it comes.
    :param skip_on_exit_code: exit codes of tasks that skip the Airflow task, if no task failed otherwise.
    """

    def __init__(
        self, hook: AirExecutorHook, log: Any, *, stream_logs: bool, skip_on_exit_code: Collection[int] = ()
    ) -> None:
        self._hook = hook
        self._log = log
        self._stream_logs = stream_logs
        self._skip_on_exit_code = skip_on_exit_code
        self._output: JobOutput | None = None
        self._last = ""

    def progress(self, job: Job) -> None:
        """Say how far it is, if that has changed. While another machine is away, that is not known."""
        jobs = self._hook.patient(0)
        self._show_output(jobs, job)
        try:
            line = summary.progress(jobs.get_tasks(job.name)) + jobs.trouble(job.name)
        except JobsAwayError:  # the log says so once
            return
        except (CorruptFileError, OSError) as error:
            line = f"its tasks cannot be read now: {error}"
        if line != self._last:
            self._last = line
            self._log.info("job %s: %s", job.name, line)

    def _show_output(self, jobs: Jobs, job: Job) -> None:
        """Let what the tasks have printed since the last time appear."""
        if self._stream_logs:
            self._output = self._output or JobOutput(jobs, job.name)
            self._output.move(jobs)
            self._output.show(self._log, is_over=job.state.is_terminal)

    def end(self, job: Job, context: Context | None) -> dict[str, Any]:
        """Say how the job has ended, task by task.

        :param context: where the results of a failed job's completed tasks are left; None: nowhere.
        :return: what its tasks have handed over.
        :raises JobFailedError: if it has failed.
        :raises AirflowSkipException: if its exit codes mean that.
        """
        self._show_output(self._hook.jobs, job)
        # The error contains the output of a failed job.
        log_lines = 0 if job.state is JobState.FAILED else lines_at_end(self._output)
        for line in summary.describe(self._hook.jobs, job, log_lines=log_lines):
            log_line(self._log, line)
        if job.state is not JobState.COMPLETED:
            self._push_partial_results(job, context)
            self._skip_if_meant(job)
            raise summary.error_of(self._hook.jobs, job)
        return results_of(self._hook.jobs, job.name)

    def _push_partial_results(self, job: Job, context: Context | None) -> None:
        """Leave what the tasks that have completed have handed over, of a job that has failed."""
        if context is None:
            return
        try:
            outputs = results_of(self._hook.jobs, job.name)
        except (AirExecutorError, OSError) as error:  # the failure of the job is what counts
            self._log.warning("results of job %s cannot be taken: %s", job.name, error)
            return
        if outputs:
            context["ti"].xcom_push(key="partial_results", value=outputs)

    def _skip_if_meant(self, job: Job) -> None:
        try:
            codes = {task.exit_code for task in summary.root_failures(self._hook.get_tasks(job.name))}
        except AirExecutorError:  # a list that is not valid, for instance
            return
        if codes and codes <= set(self._skip_on_exit_code):
            raise AirflowSkipException(f"job {job.name!r} failed with exit code {', '.join(sorted(map(str, codes)))}")
