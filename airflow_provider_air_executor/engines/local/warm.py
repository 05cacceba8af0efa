"""The manager's side of the fork server: starts it, sends tasks to it or to a generation of it, receives their ends."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.freshness import Freshness
from airflow_provider_air_executor.engines.local.generations import Generations
from airflow_provider_air_executor.engines.local.offspring import IMPORT_SECONDS
from airflow_provider_air_executor.engines.local.preloading import IS_LINUX, Preload, Preloading
from airflow_provider_air_executor.engines.local.publication import Publication
from airflow_provider_air_executor.engines.local.serving import Event, Exited, Refused, Server
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.preload_info import in_words
from airflow_provider_air_executor.system.control_groups import Group

log = logging.getLogger("air_executor.manager")

_RETRY_SECONDS = 60.0  # after a fork server could not be started
_FULL_SECONDS = 0.05  # until something is sent again


class _Request(NamedTuple):
    """An attempt that waits for a process."""

    message: dict[str, Any]
    is_for_base: bool  # whether it is not to have what generations import
    file: str | None  # which the task executes


class ForkServerClient:
    """The manager's side of its fork server, which has imported modules already, and is forked for each task.

    It is started with the first task, or ahead of it by :meth:`start`. Requests wait until it has imported what it is
    to import.

    :param environment: the environment of the fork server, and so that of its tasks.
    :param children: calls back when the fork server has ended.
    :param preload: what it imports.
    :param base_path: where it is published what has been imported.
    """

    def __init__(self, environment: Mapping[str, str], children: Children, preload: Preload, base_path: Path) -> None:
        self._path = environment["PATH"]
        self._generations = Generations(dict(environment), children)
        self._preloading = Preloading(preload.learner, self._generations)
        self._freshness = Freshness(self._generations, self._replace)
        self._publication = Publication(base_path, self._describe)
        self._modules = preload.modules
        self._why_not = "" if IS_LINUX else "warm runners need Linux"
        self._retry_at = 0.0 if IS_LINUX else math.inf
        self._found: dict[str, str] = {}  # commands that tasks have named, in the manager's own path
        self._waiting: dict[Attempt, _Request] = {}
        self._events: list[Event] = []
        self._said: tuple[tuple[str, ...], str] | None = None  # with which modules no generation could be made, and why

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`."""
        return self._generations.descriptor

    def why_cold(self, task: Task) -> str:
        """Why a task cannot start warm; empty if it can."""
        if task.env or not task.append_env:
            return "its environment differs from the manager's"
        if not self._is_this_python(task.command) or not _python_module(task.args):
            return f"its command is not {sys.executable} -m MODULE"
        return self._why_none

    @property
    def _why_none(self) -> str:
        """Why there can be no fork server at the moment; empty if there can, or there is one."""
        return self._why_not if self._generations.base is None and time.monotonic() < self._retry_at else ""

    def _is_this_python(self, command: str) -> bool:
        """Whether a command is the Python that runs the manager."""
        if "/" not in command and command not in self._found:
            found = shutil.which(command, path=self._path)
            if found is None:  # it may come to be there
                return False
            self._found[command] = found
        return self._found.get(command, command) == sys.executable

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called in any case; None: never."""
        if self._events:
            return 0.0
        parts = (self._generations, self._preloading, self._freshness, self._publication)
        due = [seconds for seconds in (part.poll_after for part in parts) if seconds is not None]
        if self._waiting and self._generations.is_serving:  # the channel is full
            due.append(_FULL_SECONDS)
        return min(due, default=None)

    def start(self) -> None:
        """Start the fork server if there is none."""
        if self._generations.base is not None or self._why_none or not IS_LINUX:
            return
        try:
            self._generations.start_base(self._modules)
        except OSError as error:
            self._cannot_start(f"the fork server could not be started: {error.strerror}")

    def fork(
        self, attempt: Attempt, task: Task, words: list[str], variables: Mapping[str, str], group: Group | None
    ) -> None:
        """Ask for a process that runs a task; :meth:`poll` returns the answer.

        :param task: if the modules to import have not been said yet, it says them.
        :param words: the record, the time, the log, the directory to run in or nothing, the command, its arguments.
        :param variables: the environment variables that describe the task.
        :param group: the control group of the attempt, if it has one.
        """
        self._modules = self._modules or task.preload or ()
        module, *args = _python_module(task.args)
        record, started_at, log_path, cwd, *_ = words
        message = {
            "key": attempt.serial,
            "module": module,
            "safe": task.args[0] == "-P",
            "record": record,
            "started_at": started_at,
            "log": log_path,
            "cwd": cwd,
            "variables": variables,
            "args": args,
            "hint": self._preloading.hint(task),
        }
        if group is not None:
            message["group"] = [group.entry, group.home]
        self._waiting[attempt] = _Request(message, self._preloading.goes_to_base(task), task.preload_key)
        self.start()
        self._freshness.a_task_has_come()
        self._send()

    def refresh(self) -> None:
        """Replace the fork server, if there is one, by another one, which imports everything anew."""
        self._retry_at = 0.0
        base = self._generations.base
        if base is not None and self._replace():
            log.info("the fork server %s is replaced by another one: somebody asks for it", base.pid)

    def _replace(self) -> bool:
        """Start another fork server, which takes the place of the present one when it is ready."""
        if self._generations.next_base is not None or time.monotonic() < self._retry_at:
            return False
        try:
            self._generations.start_base(self._modules)
        except OSError as error:
            self._cannot_start(f"the fork server could not be started: {error.strerror}")
            return False
        return True

    def withdraw(self, attempt: Attempt) -> bool:
        """Take a request back; False if it has been sent already."""
        return self._waiting.pop(attempt, None) is not None

    def _send(self) -> None:
        full: set[Server] = set()
        for attempt, request in list(self._waiting.items()):
            server = self._generations.server_for(is_for_base=request.is_for_base)
            if server is None or server in full:
                continue
            try:
                is_sent = server.send(attempt, request.message, request.file)
            except ValueError as error:
                del self._waiting[attempt]
                self._events.append(Refused(attempt, str(error), is_final=True))
                continue
            if is_sent:
                del self._waiting[attempt]
            else:
                full.add(server)

    def _describe(self) -> dict[str, Any]:
        return {**self._generations.describe(), "learned": self._preloading.describe()}

    def poll(self) -> list[Event]:
        """The events since the last call."""
        for server, message in self._generations.receive():
            if message is None:
                self._lose(server, "it has ended")
                continue
            event = server.take(message)
            if event is None:
                self._take(server, message)
                continue
            self._events.append(event)
            if isinstance(event, Exited):
                self._preloading.an_attempt_has_ended()
                self._publication.something_has_changed()
        for server in self._generations.late():
            self._lose(server, f"importing {in_words(server.modules)} took longer than {IMPORT_SECONDS:g} s")
        self._events += self._generations.drop_unneeded()
        self._send()
        for part in (self._preloading, self._freshness, self._publication):
            part.step()
        events, self._events = self._events, []
        return events

    def _take(self, server: Server, message: dict[str, Any]) -> None:
        """Act upon a message that is not about an attempt."""
        self._publication.something_has_changed()
        if "ready" in message:
            self._has_become_ready(server)
        elif "tried" in message:
            self._preloading.has_tried(server, message)
        elif "changed" in message:
            self._freshness.has_changed(server, message["changed"], is_settled=message["settled"])
        elif "failed" in message:
            self._lose(server, message["failed"], message["module"])

    def _has_become_ready(self, server: Server) -> None:
        self._generations.make_way(server)
        self._preloading.has_become_ready(server)
        if server.parent is None:
            log.info("fork server %s is warm", server.pid)
        else:
            log.info("generation %d has imported %s", server.number, in_words(server.modules))

    def _lose(self, server: Server, why: str, module: str | None = None) -> None:
        """A process has ended, or is ended; its attempts go on.

        :param module: because of which it could not import all that it was to import.
        """
        self._publication.something_has_changed()
        what = f"the fork server {server.pid}" if server.parent is None else f"generation {server.number}"
        self._events += self._generations.drop(server, f"{what}: {why}")
        if server.is_retired:
            return
        if server.parent is not None:
            self._generation_failed(server, module, why)
        elif server.is_ready:  # and there will be one again
            log.warning(
                "%s: %s; %s", what, why, "it is started again" if self._waiting else "the next task starts another one"
            )
            if self._waiting:
                self.start()
        else:
            self._cannot_start(f"the fork server could not import its modules: {why}")

    def _generation_failed(self, server: Server, module: str | None, why: str) -> None:
        if server.is_ready:
            log.warning(
                "generation %d has ended; tasks start from the fork server until there is another", server.number
            )
            return
        self._preloading.has_failed(module, why)
        if (server.modules, why) != self._said:
            self._said = server.modules, why
            log.warning("a generation with %s could not be made: %s", in_words(server.modules), why)

    def _cannot_start(self, why: str) -> None:
        """There is no new fork server for a while. If there is none at all, what waits for one starts cold."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if self._generations.base is not None:
            log.error("%s; the earlier one goes on, and it is tried again in %g s", why, _RETRY_SECONDS)
            return
        self._why_not = why
        log.error("%s; tasks start cold, and it is tried again in %g s", why, _RETRY_SECONDS)
        self._events += [Refused(attempt, why, is_final=True) for attempt in self._waiting]
        self._waiting.clear()

    def release(self, exited: Exited, *, may_stay: bool) -> None:
        """Use a process again whose attempt has ended, if it waits for that.

        :param may_stay: otherwise it ends; if that cannot be said to it now, by itself after a while.
        """
        if exited.is_idle and may_stay:
            exited.server.keep(exited.pid, exited.file)
        elif exited.is_idle:
            exited.server.dismiss(exited.pid)

    def close(self) -> None:
        """End the fork server. The tasks go on."""
        self._preloading.close()
        self._generations.close()


def _python_module(args: Sequence[str]) -> Sequence[str]:
    """The module that Python is to run, and its arguments; nothing if it is to do something else."""
    words = args[1:] if args[:1] == ("-P",) else args
    return words[1:] if words[:1] == ("-m",) else ()
