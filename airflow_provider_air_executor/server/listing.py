"""All jobs for clients that look again and again: they get those that have changed since they looked last."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.index import OutcomeCounts
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.server.masking import shown_job, shown_labels

MOST_REMOVED = 10_000  # names that are remembered
_CURSOR = re.compile(r"([0-9a-f]{8})-(\d{1,18})", re.ASCII)


class _Known(NamedTuple):
    job: Job
    outcomes: OutcomeCounts
    number: int  # that of the change that was seen last


class Listing:
    """Numbers the changes of all jobs, as far as anybody asks for them.

    A cursor is ``<a word of this server>-<number>``: all that has changed up to that number is known to the client.
    """

    def __init__(self, jobs: FileJobs) -> None:
        self._jobs = jobs
        self._word = os.urandom(4).hex()
        self._guard = threading.Lock()
        self._number = 0
        self._known: dict[str, _Known] = {}
        self._removed: deque[tuple[int, str]] = deque()
        self._forgotten = 0  # the number of the last removal that is not remembered any more

    def lines(self, after: str | None) -> Iterator[bytes]:
        """The jobs that have changed, each on a line, and a last line with what holds for all.

        :param after: the cursor of the answer before; if it is not known (any more), all jobs are listed.
        """
        with self._guard:
            self._look()
            since = self._since(after)
            changed = [known for known in self._known.values() if since is None or known.number > since]
            working = [known.job for known in self._known.values() if not known.job.state.is_terminal]
            removed = self._removed_since(since)
            cursor, unreadable = f"{self._word}-{self._number}", self._jobs.index().unreadable
        for known in changed:
            yield self._line(known)
        last = {
            "cursor": cursor,
            "whole": since is None,
            "removed": removed,
            "unreadable": unreadable,
            "held_up": self._jobs.held_up(working),
        }
        yield json.dumps(last).encode()

    def _since(self, after: str | None) -> int | None:
        """The number in a cursor; None if it says nothing here."""
        found = _CURSOR.fullmatch(after or "")
        if found is None or found[1] != self._word:
            return None
        return int(found[2]) if self._forgotten <= int(found[2]) <= self._number else None

    def _removed_since(self, since: int | None) -> list[str]:
        """The names of jobs that were removed after a number, unless others have them now."""
        if since is None:
            return []
        return [name for number, name in self._removed if number > since and name not in self._known]

    def _look(self) -> None:
        """Number what has changed since the last look."""
        index = self._jobs.index(ahead=True)
        jobs = index.jobs()
        names = set()
        for job in jobs:
            names.add(job.name)
            before = self._known.get(job.name)
            if before is not None and before.job is job and job.state.is_terminal:
                continue
            outcomes = index.outcomes(job.name)
            if before is None or before.job is not job or before.outcomes != outcomes:
                self._number += 1
                self._known[job.name] = _Known(job, outcomes, self._number)
        for name in self._known.keys() - names:
            del self._known[name]
            self._number += 1
            self._removed.append((self._number, name))
        while len(self._removed) > MOST_REMOVED:
            self._forgotten = self._removed.popleft()[0]

    def _line(self, known: _Known) -> bytes:
        job, mask = known.job, None
        try:
            mask = self._jobs.mask(job.name)
        except AirExecutorError:  # what must not be shown is not known
            job = job.evolve(labels={}, outlets=(), error=None)
        labels: Mapping[str, str] = shown_labels(job.labels, mask or Mask())
        head = shown_job(job, mask or Mask()).model_dump_json()
        rest = json.dumps({"outcomes": known.outcomes, "labels": labels})
        return f'{{"job":{head},{rest[1:]}'.encode()
