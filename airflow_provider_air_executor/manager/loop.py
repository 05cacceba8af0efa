"""The loop of a manager's process: it sleeps until something happens, and ends by a signal or for lack of work."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket

from airflow_provider_air_executor.exceptions import ManagerRunningError
from airflow_provider_air_executor.jobs import files, inbox
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.system.clock import seconds_since_boot

log = logging.getLogger("air_executor.manager")

_WAKEUP_BYTES = 4096  # read at a time of those that signals leave


class Loop:
    """Runs a manager while it holds the lock on its base path.

    :param lock: held.
    """

    def __init__(self, manager: Manager, lock: ManagerLock) -> None:
        self._manager = manager
        self._shared = manager.shared
        self._store = manager.shared.store
        self._idle_timeout = manager.shared.settings.idle_timeout
        self._lock = lock
        self._idle_since = manager.shared.timers.now()
        self._is_stopping = False
        self._is_ours = True  # whether no other manager has taken over

    def run(self) -> None:
        """Run jobs until SIGTERM or SIGINT, or for lack of work. Tasks that run then go on by themselves."""
        wakeup, wake = socket.socketpair()
        for end in (wakeup, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only has to end the sleep
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        notifier, engines = self._shared.notifier, self._shared.engines
        watched = {wakeup.fileno()}
        if notifier.works:
            watched.add(notifier.fileno())
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        self._manager.recover()
        log.info("manager %d runs the jobs of %s", os.getpid(), self._store.base_path)
        while not self._is_stopping and self.go_round():
            for descriptor in engines.descriptors:
                if descriptor not in watched:  # an engine may have been loaded meanwhile
                    poll.register(descriptor, select.POLLIN)
                    watched.add(descriptor)
            ready = [descriptor for descriptor, _ in poll.poll(1000 * self._sleep_seconds())]
            self._manager.changes.is_notified = notifier.fileno() in ready
            if wakeup.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    while len(wakeup.recv(_WAKEUP_BYTES)) == _WAKEUP_BYTES:
                        pass
        signal.set_wakeup_fd(-1)  # before the socket is closed: a child may still end
        self._manager.close(is_ours=self._is_ours)

    def _stop(self, *_: object) -> None:
        self._is_stopping = True

    def go_round(self) -> bool:
        """Do everything that can be done now; False if this manager is not needed any more."""
        passes = self._now() >= self._manager.changes.next_pass
        if not self._keeps_lease():
            return False
        self._manager.tick()
        if passes and not self._is_still_ours():
            log.critical("%s was removed or replaced; manager %d ends", self._store.lock_path, os.getpid())
            return False
        try:
            is_over = self._is_idle() and self._may_retire()
        except OSError:  # a file that cannot be seen now may be there
            is_over, self._idle_since = False, self._now()
        if is_over:
            log.info("manager %d ends: there was nothing to do", os.getpid())
        return not is_over

    def _now(self) -> float:
        return self._shared.timers.now()

    def _sleep_seconds(self) -> float:
        changes = self._manager.changes
        due = min(changes.next_pass, self._shared.timers.next_due)
        if self._idle_timeout is not None:
            due = min(due, self._idle_since + self._idle_timeout)
        seconds = min(due - self._now(), self._lock.lease.due - seconds_since_boot())
        for poll_after in (self._shared.engines.poll_after, self._shared.turns.poll_after, changes.look_after):
            if poll_after is not None:
                seconds = min(seconds, poll_after)
        return max(0.0, seconds)

    # -- the end for lack of work --------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        if self._idle_timeout is None:
            return False
        jobs = self._shared.jobs
        if jobs.active or jobs.unsettled or self._shared.turns.poll_after is not None:
            self._idle_since = self._now()
        if self._now() - self._idle_since < self._idle_timeout:
            return False
        alive = files.stamp(self._store.keep_alive_path)
        if alive is not None:
            age = max(0, self._shared.timers.clock.time_ns() - alive.mtime_ns) / 1e9
            self._idle_since = max(self._idle_since, self._now() - age)
        return self._now() - self._idle_since >= self._idle_timeout

    def _keeps_lease(self) -> bool:
        """Renew the lease, if it is time; False if another manager has taken over.

        After a pause, in which another one may have done so, that is found out before anything else is done.
        """
        lease = self._lock.lease
        if seconds_since_boot() < lease.due:
            return True
        with contextlib.suppress(OSError):  # while the file system is away, nothing is done there
            successor = lease.successor()
            if successor is not None:
                log.critical(
                    "another manager, on %s, has taken over %s: manager %d ends",
                    successor.host or "another machine",
                    self._store.base_path,
                    os.getpid(),
                )
                self._is_ours = False
                return False
        lease.renew()
        return True

    def _is_still_ours(self) -> bool:
        try:
            return self._lock.is_still_ours()
        except OSError:  # it cannot be seen now
            return True

    def _may_retire(self) -> bool:
        """Release the lock, and take it back if a job or a request came meanwhile.

        Who publishes a job and then sees the lock held can rely on us: the last look is after the lock is released.

        :raises OSError: if there may be something to do; the lock is held then.
        """
        if not self._has_work():
            self._lock.release()
            try:
                has_work = self._has_work()
            except OSError:
                has_work = True
            # If the lock cannot be had again, another manager was faster and does the work.
            if not (has_work and self._takes_back_lock()):
                return True
        self._idle_since, self._manager.changes.next_pass = self._now(), 0.0
        return False

    def _has_work(self) -> bool:
        """Whether there is a request, or a job that has changed since it ended."""
        return bool(inbox.requests(self._store)) or any(
            files.stamp(self._store.paths(name).state) != self._shared.jobs.ended.get(name)
            for name in self._store.job_names()
        )

    def _takes_back_lock(self) -> bool:
        try:
            return self._lock.acquire()
        except ManagerRunningError:
            return False
        except OSError as error:
            log.critical("manager %d cannot take its lock back: %s", os.getpid(), error)
            return False
