"""Says of tasks that wait for resources of this machine what they wait for, in their field ``where``."""

from __future__ import annotations

from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.timers import Seldom

_SECONDS = 2.0  # between two looks: what is free changes often, and to say so costs a list of tasks


class WaitingWords:
    """Says it of the first task of each line: of those that need the same, the others wait for that one."""

    def __init__(self, shared: Shared) -> None:
        self._jobs = shared.jobs
        self._lines = shared.queue.lines
        self._looks = Seldom(shared.timers)

    def say(self) -> None:
        """Say what has changed, or set a timer if it is too early."""
        if not self._lines or not self._looks.is_due():
            return
        self._looks.rest(_SECONDS)
        for line in self._lines:
            job, task = line.first.job, line.first.task
            if task is not None and self._jobs.is_active(job):
                job.say_what_for(task.id, self._lines.capacity.why_waits(line.needs))
                self._jobs.touched.add(job.name)
