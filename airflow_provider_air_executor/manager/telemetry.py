"""Sends the metrics of the manager by OpenTelemetry, where that is installed and an endpoint is configured."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.manager.metrics import metrics

log = logging.getLogger("air_executor.manager")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CLOSE_SECONDS = 2.0
_INSTALL = "pip install opentelemetry-sdk opentelemetry-exporter-otlp"

Current = Callable[[], ManagerInfo | None]


class Telemetry:
    """Sends what the manager has published last, as often as ``OTEL_METRIC_EXPORT_INTERVAL`` says (once a minute).

    All of it, the imports too, is done in threads: the manager waits for nothing.

    :param is_on: the setting ``metrics_otel``; None: if an endpoint is configured.
    :param current: what the manager has published last; called in another thread.
    """

    def __init__(
        self, is_on: bool | None, base_path: Path, current: Current, environment: Mapping[str, str] = os.environ
    ) -> None:
        is_configured = any(environment.get(name) for name in _ENDPOINTS)
        self._is_wanted, self._is_on = is_on is True, is_configured if is_on is None else is_on
        self._base_path, self._current, self._environment = base_path, current, environment
        self._provider: Any = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send, if that is wanted."""
        if self._is_on:
            self._thread = threading.Thread(target=self._start, name="telemetry", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send once more what has not been sent, if that does not take long."""
        if self._thread is not None:
            last = threading.Thread(target=self._end, args=(self._thread,), name="telemetry-end", daemon=True)
            last.start()
            last.join(_CLOSE_SECONDS)

    def _start(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # they are for the manager
        try:
            self._provider = self._make()
        except ImportError as error:
            level = logging.ERROR if self._is_wanted else logging.INFO
            log.log(level, "metrics are not sent by OpenTelemetry: %s; %s", error, _INSTALL)
        except Exception:
            log.exception("metrics are not sent by OpenTelemetry")
        else:
            log.info("metrics are sent by OpenTelemetry")

    def _end(self, starting: threading.Thread) -> None:
        starting.join()
        if self._provider is not None:
            self._provider.shutdown(timeout_millis=1000 * _CLOSE_SECONDS)

    def _make(self) -> Any:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        resource = Resource.create({"air_executor.base_path": str(self._base_path)})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # the environment does not say
            resource = resource.merge(Resource({"service.name": "air-executor"}))
        reader = PeriodicExportingMetricReader(self._exporter())
        provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        instrument(provider.get_meter("air_executor", __version__), self._current)
        return provider

    def _exporter(self) -> Any:
        """The exporter that the environment chooses; its other variables are read by itself."""
        protocol = next(filter(None, map(self._environment.get, _PROTOCOLS)), "http/protobuf")
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

            return GrpcExporter()
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter()


def instrument(meter: Any, current: Current) -> None:
    """Make the instruments of all metrics, ``air_executor.`` and the name.

    :param meter: of OpenTelemetry.
    :param current: what the manager has published last.
    """
    for metric in metrics(ManagerInfo(0)):
        if metric.kind == "info":  # the attributes of the resource say so
            continue
        make = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
        observe = partial(_observe, current, metric.name)
        make(f"air_executor.{metric.name}", [observe], "s" if metric.unit else "", metric.meaning)


def _observe(current: Current, name: str, _options: object) -> Iterator[Any]:
    from opentelemetry.metrics import Observation

    info = current()
    for metric in metrics(info) if info is not None else ():
        if metric.name == name:
            yield from (Observation(sample.value, dict(sample.labels)) for sample in metric.samples)
