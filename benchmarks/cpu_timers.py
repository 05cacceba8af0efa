"""Timers in the supervisors and tasks of the executor, for ``cpu_of_a_task.py``.

The fork server imports this module, since the setting ``preload`` names it, and calls :func:`preload`. That wraps
functions of Airflow and of the executor. Each supervisor and each task writes a line to a file: CPU seconds and page
faults of each part, without those of the parts within it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

FILE = "BENCHMARK_CPU_TIMERS"  # the variable with the name of the file
_SDK = "airflow.sdk.execution_time"
# Module, attribute, and its part. If an Airflow has no such attribute, its time belongs to the part around it.
_POINTS = (
    (f"{_SDK}.supervisor", "_configure_logs_over_json_channel", "logging is set up"),
    (f"{_SDK}.supervisor", "_configure_logging", "logging is set up"),
    (f"{_SDK}.supervisor", "_upload_logs", "logging is set up"),
    (f"{_SDK}.supervisor", "block_orm_access", "database access is blocked"),
    (f"{_SDK}.supervisor", "ActivitySubprocess._on_child_started", "startup message"),
    (f"{_SDK}.supervisor", "WatchedSubprocess.start", "sockets, pipes and psutil"),
    (f"{_SDK}.supervisor", "ActivitySubprocess._monitor_subprocess", "monitor loop"),
    (f"{_SDK}.supervisor", "ActivitySubprocess._handle_request", "requests of the task"),
    (f"{_SDK}.task_runner", "CommsDecoder.__init__", "pydantic adapters"),
    (f"{_SDK}.task_runner", "get_startup_details", "startup message"),
    (f"{_SDK}.task_runner", "startup", "startup"),
    (f"{_SDK}.task_runner", "parse", "DAG file"),
    (f"{_SDK}.task_runner", "get_listener_manager", "plugins and listeners"),
    (f"{_SDK}.task_runner", "RuntimeTaskInstance.get_template_context", "templates"),
    (f"{_SDK}.task_runner", "RuntimeTaskInstance.render_templates", "templates"),
    (f"{_SDK}.task_runner", "_serialize_rendered_fields", "templates"),
    (f"{_SDK}.task_runner", "_execute_task", "operator"),
    (f"{_SDK}.task_runner", "finalize", "finalize"),
    (f"{_SDK}.comms", "CommsDecoder.send", "requests to the supervisor"),
    ("airflow.sdk.api.client", "Client.__init__", "HTTP client"),
    ("structlog._base", "BoundLoggerBase._proxy_to_logger", "log lines"),
    ("airflow_provider_air_executor.workload", "main", "workload"),
)
_HTTP = "airflow.sdk.api.client"


class _Clock:
    """Charges what this process uses to the part that it is in."""

    def __init__(self) -> None:
        self.begin("rest")

    def begin(self, part: str) -> None:
        """Forget what was used so far; later costs belong to a part."""
        self.parts: dict[str, list[float]] = {}
        self._within = [part]
        self._seen = _used()

    def begin_forked(self) -> None:
        """The same in a process that was just forked, whose counters began anew."""
        self.begin("start")
        self._seen = (0.0, 0.0)

    def _charge(self) -> None:
        now = _used()
        spent = self.parts.setdefault(self._within[-1], [0.0, 0.0])
        spent[0] += now[0] - self._seen[0]
        spent[1] += now[1] - self._seen[1]
        self._seen = now

    def enter(self, part: str) -> None:
        """What is used now belongs to a part."""
        self._charge()
        self._within.append(part)

    def leave(self) -> None:
        """What is used now belongs to the part around."""
        self._charge()
        if len(self._within) > 1:
            self._within.pop()

    def write(self, who: str) -> None:
        """Add a line to the file, and begin anew."""
        self._charge()
        line = json.dumps({"who": who, "pid": os.getpid(), "parts": self.parts}) + "\n"
        file = os.open(os.environ[FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, line.encode())
        os.close(file)
        self.begin("rest")


def _used() -> tuple[float, float]:
    return time.process_time(), float(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


_clock = _Clock()


def preload() -> None:
    """Wrap all points; the fork server calls this."""
    os.register_at_fork(after_in_child=_clock.begin_forked)
    for module, attribute, part in _POINTS:
        _wrap(importlib.import_module(module), attribute, part)
    _wrap_requests()
    _wrap_fork()
    from airflow.sdk.execution_time import task_runner

    from airflow_provider_air_executor.engines.local.forked import ForkedProcess

    _wrap(task_runner, "main", "task runner", at_end="task")
    _wrap(ForkedProcess, "_run_recorded", "record", at_end="supervisor")


def _wrap(owner: Any, path: str, part: str, *, at_end: str = "") -> None:
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each, None)
    call: Callable[..., Any] | None = getattr(owner, name, None)
    if call is None:
        return
    if isinstance(vars(owner).get(name), classmethod):
        call = call.__func__  # type: ignore[attr-defined]

    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        _clock.enter(part)
        try:
            return call(*args, **kwargs)
        finally:
            _clock.leave()
            if at_end:
                _clock.write(at_end)

    setattr(owner, name, classmethod(timed) if isinstance(vars(owner).get(name), classmethod) else timed)


def _wrap_requests() -> None:
    """Each kind of request to the API server is a part of its own."""
    client = importlib.import_module(_HTTP).Client
    request = client.request

    @functools.wraps(request)
    def timed(self: Any, method: str, url: Any, *args: Any, **kwargs: Any) -> Any:
        _clock.enter(f"{method} {str(url).rpartition('/')[2]}")
        try:
            return request(self, method, url, *args, **kwargs)
        finally:
            _clock.leave()

    client.request = timed


def _wrap_fork() -> None:
    """What fork costs the process that calls it; the new one begins with a clock of its own."""
    fork = os.fork

    def timed() -> int:
        _clock.enter("fork")
        pid = fork()
        if pid:
            _clock.leave()
        return pid

    os.fork = timed
