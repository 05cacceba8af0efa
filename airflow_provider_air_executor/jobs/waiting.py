"""Waiting, in a process of its own, until a job has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from airflow_provider_air_executor.exceptions import CorruptFileError, JobsAwayError, JobTimeoutError
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import Job

_FIRST_POLL_SECONDS = 0.02
_ALIVE_SECONDS = 5.0  # between two looks at whether a manager is alive


def wait_until_ended(
    jobs: Jobs,
    job_name: str,
    *,
    timeout: float | None = None,
    poll_interval: float = 1.0,
    after_attempt: int = -1,
    on_poll: Callable[[Job], None] | None = None,
    on_problem: Callable[[str], None],
) -> Job:
    """Wait until a job has ended. Every few seconds the manager is started if it is embedded and gone.

    :param timeout: at most so many seconds; default: without limit.
    :param poll_interval: seconds between two looks; the first ones follow each other faster.
    :param after_attempt: the end of this attempt of the job, or an earlier one, does not count.
    :param on_poll: called with the job after each look at which it had not ended.
    :param on_problem: called with a sentence if the job cannot be read now, which is not its failure.
    :return: the job, completed or failed.
    :raises JobTimeoutError: when the time is over; the job goes on.
    :raises JobNotFoundError: if there is no such job.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = min(_FIRST_POLL_SECONDS, poll_interval)
    alive_until = time.monotonic() + _ALIVE_SECONDS
    job, problem, next_poll = None, "", 0.0
    is_changed = is_news = True  # since the last look, and since the last call of on_poll
    while True:
        # What is asked of another machine must not take longer than the time that is left.
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if is_changed or job is None:
            job, problem = _look(jobs.with_patience(left), job_name, problem, on_problem)
        if job is not None and job.state.is_terminal and job.attempt > after_attempt:
            return job
        now = time.monotonic()
        is_due = is_news and (now >= next_poll or (deadline is not None and now >= deadline))
        if job is not None and on_poll is not None and is_due:
            on_poll(job)
            now, is_news = time.monotonic(), False
            next_poll = now + pause
        if deadline is not None and now >= deadline:
            state = job.state.value if job is not None else "not readable"
            raise JobTimeoutError(f"job {job_name!r} is still {state} after {timeout:g} s")
        if now >= alive_until:
            with contextlib.suppress(JobsAwayError):
                jobs.with_patience(0).ensure_manager()
            alive_until = now + _ALIVE_SECONDS
        is_changed = jobs.wait(job_name, pause if deadline is None else max(0.0, min(pause, deadline - now)))
        is_news = is_news or is_changed
        pause = min(pause * 1.5, poll_interval)


def _look(jobs: Jobs, job_name: str, problem: str, on_problem: Callable[[str], None]) -> tuple[Job | None, str]:
    """The job, and why it cannot be read now, which is said once."""
    try:
        return jobs.get_job(job_name), ""
    except JobsAwayError as error:  # which the log says once
        return None, str(error)
    except (CorruptFileError, OSError) as error:
        if str(error) != problem:
            on_problem(str(error))
        return None, str(error)
