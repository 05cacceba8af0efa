"""The metrics of a manager by OpenTelemetry: only where that is configured, and not in the way of its work."""

from __future__ import annotations

import builtins
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.manager_info import COUNTERS, ManagerInfo
from airflow_provider_air_executor.manager import telemetry
from airflow_provider_air_executor.manager.telemetry import Telemetry
from tests.manager.test_metrics import INFO
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytest.importorskip("opentelemetry.sdk.metrics")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What a collector has got."""
    got: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", free_port()), Handler) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield got
        server.shutdown()
        thread.join()


def values(metrics: Any) -> dict[tuple[str, str], float]:
    found = {}
    for resource in metrics.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    labels = ",".join(f"{name}={value}" for name, value in point.attributes.items())
                    found[metric.name.removeprefix("air_executor."), labels] = point.value
    return found


def test_all_that_is_published_is_an_instrument() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    now: list[ManagerInfo | None] = [INFO]
    telemetry.instrument(provider.get_meter("x"), lambda: now[0])
    found = values(reader.get_metrics_data())
    assert {name: found[name, ""] for name in COUNTERS} == INFO.counters
    assert {key: found[key] for key in found if key[0] not in COUNTERS} == {
        ("start_time_seconds", ""): INFO.started_at.timestamp(),
        ("paused", ""): 1,
        ("slots_used", "runner=local"): 1,
        ("slots_used", "runner=slurm"): 0,
        ("slots", "runner=local"): 4,
        ("slots", "runner=slurm"): 1000,
        ("queued_tasks", ""): 3,
        ("oldest_waiting_time_seconds", ""): INFO.oldest_waiting.since.timestamp(),
        ("jobs", "state=waiting"): 2,
        ("jobs", "state=working"): 1,
    }
    now[0] = None
    assert not reader.get_metrics_data()
    provider.shutdown()


def test_a_collector_gets_them_when_the_manager_ends(collector: list[bytes], tmp_path: Path) -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    exporting = Telemetry(None, tmp_path, lambda: INFO)
    exporting.start()
    exporting._thread.join()
    exporting.close()
    wait_until(lambda: collector, what="the collector has got something")
    request = ExportMetricsServiceRequest.FromString(collector[-1])
    (resource,) = request.resource_metrics
    attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert attributes["service.name"] == "air-executor"
    assert attributes["air_executor.base_path"] == str(tmp_path)
    names = {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
    assert "air_executor.jobs_completed" in names


@pytest.mark.parametrize(
    ("is_on", "environment", "starts"),
    [
        (None, {}, False),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        (None, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, True),
        (False, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        (True, {}, True),
    ],
)
def test_it_is_on_where_it_is_configured(
    tmp_path: Path, is_on: bool | None, environment: dict[str, str], starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Telemetry, "_make", lambda _: None)
    exporting = Telemetry(is_on, tmp_path, lambda: INFO, environment)
    exporting.start()
    assert (exporting._thread is not None) is starts
    exporting.close()


@pytest.mark.parametrize(("is_on", "level"), [(True, logging.ERROR), (None, logging.INFO)])
def test_what_is_not_installed_is_said(
    tmp_path: Path,
    is_on: bool | None,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    caplog.set_level(logging.INFO)
    exporting = Telemetry(is_on, tmp_path, lambda: INFO, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"})
    exporting.start()
    exporting._thread.join()
    exporting.close()
    (record,) = caplog.records
    assert record.levelno == level
    assert "pip install opentelemetry-sdk" in record.getMessage()
