"""Whether a server is away, which all threads and streams of a process find out together, and say once."""

from __future__ import annotations

import contextvars
import logging
import math
import random
import threading
import time

from airflow_provider_air_executor.exceptions import JobsAwayError

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds between two tries; the second one is reached by doubling
_IMPATIENT_PAUSE = 1.0  # the same for those who do not wait, and would learn too late that it is back
_LONGEST_RETRY_AFTER = 60.0
BUSY = "too many requests wait for its answer"

# Not the generator that all of a process share, whose state others may have set; nor one that is copied by a fork.
chance = random.SystemRandom()


class Outage:
    """Lets one thread at a time try whether a server is back, and the others wait for it.

    The pauses between two tries double, and are random between zero and that (full jitter): many clients of a server
    that comes back do not return at the same instant.

    :param where: the server, for people.
    :param log: told once that it is away, and once that it is back.
    """

    def __init__(self, where: str, log: logging.Logger) -> None:
        self._where = where
        self._log = log
        self._condition = threading.Condition()
        self._reached_at = time.time()  # last, or when it was first asked
        self._why = ""  # it is away; empty: it is there, as far as is known
        self._tried_by: int | None = None  # the thread that tries now
        self._tries = 0
        self._failed_at = self._try_at = 0.0  # on the monotonic clock
        self._changed_at = 0.0  # when it was missed, or back, last

    @property
    def error(self) -> JobsAwayError | None:
        """That it is away; None if it is there, as far as is known."""
        with self._condition:
            return self._error() if self._why else None

    def unknown(self, why: str) -> JobsAwayError:
        """That it may be away, as far as somebody knows who does not wait; that is not said, and not noted."""
        return JobsAwayError(self._where, why, self._reached_at)

    def await_turn(self, deadline: float | None) -> float:
        """Wait until the server may be asked: at once if it is there.

        :param deadline: on the monotonic clock; None: without end.
        :return: the time on that clock, for :meth:`failed` and :meth:`worked`.
        :raises JobsAwayError: if it is away until then.
        """
        with self._condition:
            while self._why:
                now = time.monotonic()
                is_impatient = deadline is not None and deadline <= now
                try_at = min(self._try_at, self._failed_at + _IMPATIENT_PAUSE) if is_impatient else self._try_at
                # What a signal has interrupted cannot go on before its handler, in the same thread, has ended.
                is_tried = self._tried_by not in (None, threading.get_ident())
                if not is_tried and now >= try_at:
                    self._tried_by = threading.get_ident()
                    return now
                if is_impatient:
                    raise self._error()
                ends = [end for end in (deadline, None if is_tried else try_at) if end is not None]
                self._condition.wait(min(ends) - now if ends else None)
            return time.monotonic()

    def failed(self, why: str, retry_after: float = 0.0, *, began: float = math.inf) -> None:
        """It could not be reached.

        What was asked before an outage began, or was over, and fails only after that, is no news.

        :param retry_after: seconds for which it has asked not to be tried again.
        :param began: when it was asked, as :meth:`await_turn` has returned.
        """
        with self._condition:
            if began < self._changed_at:
                return
            is_new = not self._why
            self._why, self._tried_by = why, None
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._tries, 16))
            self._tries += 1
            self._failed_at = time.monotonic()
            self._changed_at = self._failed_at if is_new else self._changed_at
            self._try_at = self._failed_at + min(retry_after, _LONGEST_RETRY_AFTER) + chance.uniform(0.0, pause)
            self._condition.notify_all()
        if is_new:
            self._say(logging.WARNING, "%s; it is tried again", self.error or why)

    def worked(self, *, began: float = math.inf) -> None:
        """It has answered.

        An answer to what was asked before it was missed does not say that it is back: a server that ends answers what
        it was asked, and takes no new connections.

        :param began: when it was asked, as :meth:`await_turn` has returned.
        """
        self._reached_at = time.time()
        if not self._why:  # without the lock: it is so for each request
            return
        with self._condition:
            if began < self._changed_at:
                return
            why, self._why, self._tries, self._tried_by = self._why, "", 0, None
            self._changed_at = time.monotonic()
            self._condition.notify_all()
        if why:
            self._say(logging.INFO, "the manager at %s is reached again", self._where)

    def gave_up(self) -> None:
        """Who was to try has not, for another reason."""
        with self._condition:
            self._tried_by = None
            self._condition.notify_all()

    def _say(self, level: int, message: str, fact: object) -> None:
        """Say it in no context: it is of the process, and not of the Airflow task whose request has shown it."""
        contextvars.Context().run(self._log.log, level, message, fact)

    def _error(self) -> JobsAwayError:
        return JobsAwayError(self._where, self._why, self._reached_at)
