"""What the tasks of a job print, on its way from a trigger into the log of the Airflow task."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
import time
from typing import Any

import structlog

from airflow_provider_air_executor.job_report import JobOutput
from airflow_provider_air_executor.jobs.interface import STATE, TASKS, Jobs

# What is logged in a trigger goes through a socket to another process, which writes it into the log of the task. When
# the triggerer receives SIGTERM, it may not read what is still in there (Airflow 3.3.2, WatchedSubprocess.kill).
ARRIVAL_SECONDS = 2.0
# And a trigger's log is closed when its end arrives, through another socket (same version).
_READ_PAUSE = 0.02  # seconds
_READ_SECONDS = 60.0  # that Airflow has for the rest; with many triggers that log all the time it is never at the end
_LEAST_SECONDS = 0.05  # between two looks


class TriggerOutput:
    """The output of a job's tasks for the log of the Airflow task that waits for it in the triggerer.

    :param log: the logger of the trigger.
    """

    def __init__(self, jobs: Jobs, job_name: str, log: Any) -> None:
        self._job_name = job_name
        self._log = log
        # What another machine does not answer now is asked for again, by and by.
        self.lines = JobOutput(jobs.with_patience(0), job_name, arrival=ARRIVAL_SECONDS)

    def move(self, jobs: Jobs) -> None:
        """Go on with what is elsewhere now."""
        self.lines.move(jobs.with_patience(0))

    async def follow(self, unseen: set[str], poll_interval: float, *, sees_output: bool) -> list[float]:
        """Let what the tasks have printed appear, if there may be anything.

        :param unseen: what has changed since the last time; emptied if all of it has appeared.
        :param poll_interval: seconds between two calls that look for output alone.
        :param sees_output: whether all that was printed is in ``unseen``.
        :return: pauses of which the shortest is to be kept.
        """
        is_changed = bool({STATE, TASKS} & unseen)
        is_due = bool(unseen) and time.monotonic() >= self.lines.shown_at + poll_interval
        must_show = not sees_output or is_changed or is_due
        if must_show and await self.pass_on(is_changed=is_changed):
            unseen.clear()
        if not sees_output:
            return [self.lines.pause(poll_interval)]
        if self.lines.is_unsaved and not self.lines.seconds_to_arrival():
            await self._save()
        waits = [self.lines.shown_at + poll_interval - time.monotonic()] if unseen else []
        waits += [self.lines.seconds_to_arrival()] if self.lines.is_unsaved else []
        return [max(_LEAST_SECONDS, seconds) for seconds in waits]

    async def pass_on(self, *, is_changed: bool, is_over: bool = False) -> bool:
        """Let what the tasks have printed appear in the log; if this is cancelled, no thread goes on with it.

        :return: False if it could not be read now.
        """
        show = asyncio.to_thread(self.lines.show, self._log, is_changed=is_changed, is_over=is_over)
        passing = asyncio.ensure_future(show)
        try:
            return await asyncio.shield(passing)
        except asyncio.CancelledError:
            self.lines.stop()
            await asyncio.wait([passing])
            raise

    async def let_arrive(self) -> None:
        """Wait until all logged lines are in the log of the task: the next process that waits continues after them."""
        await asyncio.sleep(self.lines.seconds_to_arrival())
        try:
            self._log.info("nobody waits for job %s here any more", self._job_name)
        except OSError:  # the process that writes the log is gone
            return
        await self._save()

    async def let_be_read(self) -> None:
        """Wait until what was logged is in the log of the task, which ends with its trigger."""
        deadline = time.monotonic() + _READ_SECONDS
        while (unread := _unread_log_bytes()) and time.monotonic() < deadline:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(_READ_PAUSE)
        if unread is None:
            await asyncio.sleep(self.lines.seconds_to_arrival())
        await self._save()

    async def _save(self) -> None:
        await asyncio.to_thread(self.lines.save)


def _unread_log_bytes() -> int | None:
    """How much of what this process has logged Airflow has not read yet, in bytes; None if that cannot be known."""
    try:
        log = structlog.get_config()["logger_factory"].io
        return int(struct.unpack("i", fcntl.ioctl(log.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (AttributeError, OSError, ValueError):  # it is not written to a socket, or another system than Linux
        return None
