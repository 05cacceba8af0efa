"""A job filesystem on another machine, reached through its server: :func:`connect`."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.jobs import RemoteJobs
    from airflow_provider_air_executor.remote.protocol import Target

_connected: dict[Target, RemoteJobs] = {}  # of this process
_guard = threading.RLock()

PATIENCE = 10.0  # seconds


def connect(target: Target, *, patience: float | None = PATIENCE, log: logging.Logger | None = None) -> RemoteJobs:
    """The jobs of a server. All who ask for the same one share its connections, which are made when they are needed.

    :param patience: seconds for which a request is sent again while the server is away; 0: once, with short time
        limits; None: without end.
    :param log: told once that the server is away, and once that it is back, for the first one who connects.
    """
    # Here, for those who use files do not wait for an HTTP client to be imported.
    from airflow_provider_air_executor.remote.index import RemoteIndex
    from airflow_provider_air_executor.remote.jobs import RemoteJobs
    from airflow_provider_air_executor.remote.link import Link
    from airflow_provider_air_executor.remote.transport import Transport
    from airflow_provider_air_executor.remote.watcher import Watcher

    with _guard:
        found = _connected.get(target)
        if found is None:
            transport = Transport(target, log or logging.getLogger(__name__))
            link = Link(transport, patience)
            found = _connected[target] = RemoteJobs(link, RemoteIndex(link), Watcher(transport))
    return found.with_patience(patience)
