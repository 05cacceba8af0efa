"""What a manager publishes about itself, as metrics: pure functions of :class:`ManagerInfo`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from airflow_provider_air_executor.jobs.manager_info import COUNTERS, ManagerInfo

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_PREFIX = "air_executor_"
_SECONDS = "seconds"


class Sample(NamedTuple):
    """One value of a metric."""

    value: float
    labels: Mapping[str, str] = {}


class Metric(NamedTuple):
    """One metric, with its present values."""

    name: str  # without the prefix and the suffix of its kind
    kind: str  # of OpenMetrics: gauge, counter or info
    meaning: str
    samples: list[Sample]

    @property
    def unit(self) -> str:
        """Its unit, if it has one; the name ends with it."""
        return _SECONDS if self.name.endswith(_SECONDS) else ""


def metrics(info: ManagerInfo) -> Iterator[Metric]:
    """All metrics of a manager; what is not known has no samples."""
    identity = {"version": info.version, "host": info.host, "pid": str(info.pid)}
    yield Metric("manager", "info", "The manager that runs.", [Sample(1, identity)])
    started = [] if info.started_at is None else [Sample(info.started_at.timestamp())]
    yield Metric("start_time_seconds", "gauge", "When the manager was started, in seconds since 1970.", started)
    yield Metric("paused", "gauge", "Whether it starts no tasks at the moment: 0 or 1.", [Sample(int(info.paused))])
    used = [Sample(slots.used, {"runner": name}) for name, slots in info.slots.items()]
    limits = [Sample(slots.limit, {"runner": name}) for name, slots in info.slots.items()]
    yield Metric("slots_used", "gauge", "How many attempts of tasks a runner has.", used)
    yield Metric("slots", "gauge", "How many attempts of tasks a runner may have.", limits)
    held = [Sample(share.used, {"resource": name}) for name, share in info.capacity.items()]
    there = [Sample(share.limit, {"resource": name}) for name, share in info.capacity.items()]
    meaning = "What tasks with resources hold of the manager's machine: processors, bytes of memory, gpus."
    yield Metric("capacity_used", "gauge", meaning, held)
    yield Metric("capacity", "gauge", "What the manager's machine has for them.", there)
    yield Metric("queued_tasks", "gauge", "Tasks that could start, and wait for room.", [Sample(info.queued)])
    since = [] if info.oldest_waiting is None else [Sample(info.oldest_waiting.since.timestamp())]
    meaning = "Since when the job waits that has waited longest, in seconds since 1970; missing if none waits."
    yield Metric("oldest_waiting_time_seconds", "gauge", meaning, since)
    states = [Sample(number, {"state": state}) for state, number in info.jobs.items()]
    yield Metric("jobs", "gauge", "Jobs that have not ended.", states)
    for name, meaning in COUNTERS.items():
        counted = [Sample(info.counters[name])] if name in info.counters else []
        yield Metric(name, "counter", meaning, counted)


def render(info: ManagerInfo) -> str:
    """The metrics of a manager as OpenMetrics text."""
    return "".join(_lines(metrics(info))) + "# EOF\n"


def _lines(found: Iterable[Metric]) -> Iterator[str]:
    for metric in found:
        name = _PREFIX + metric.name
        yield f"# TYPE {name} {metric.kind}\n"
        if metric.unit:
            yield f"# UNIT {name} {metric.unit}\n"
        yield f"# HELP {name} {metric.meaning}\n"
        suffix = {"counter": "_total", "info": "_info"}.get(metric.kind, "")
        for sample in metric.samples:
            labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in sample.labels.items())
            yield f"{name}{suffix}{f'{{{labels}}}' if labels else ''} {_number(sample.value)}\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
