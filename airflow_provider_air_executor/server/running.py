"""Runs a server until it is told to end, or for lack of work."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import embedded_manager, manager_status
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server import presence
from airflow_provider_air_executor.server.app import create_app
from airflow_provider_air_executor.server.http_server import Server
from airflow_provider_air_executor.server.listener import Address, open_listeners, parse_address
from airflow_provider_air_executor.server.service import Service
from airflow_provider_air_executor.server.tls import TlsFiles
from airflow_provider_air_executor.system.memory import share_heaps

log = logging.getLogger("air_executor.server")

_SHORTEST_LOOK = 0.05
_KEEP_SECONDS = 5.0  # between two looks whether a manager, or this server, is needed


class Options(NamedTuple):
    """How a server is run.

    :param listen: addresses besides the Unix socket of the base path.
    :param tls: the files of TLS, for TCP.
    :param insecure_plain_text: whether TCP needs no TLS, also where others can overhear it.
    :param trusted_proxies: the addresses of proxies that are believed when they name the address of their client.
    :param embedded: whether managers are started when one is needed and none runs.
    :param idle_seconds: without a request or an open stream, after which the server ends; None: it does not.
    :param ends_with_input: whether it ends when its standard input does, which is a pipe to the process it belongs to.
    """

    listen: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    insecure_plain_text: bool = False
    trusted_proxies: tuple[str, ...] = ()
    embedded: bool = False
    idle_seconds: float | None = None
    ends_with_input: bool = False


def serve(store: JobStore, options: Options) -> None:
    """Serve a job filesystem.

    :raises ServerRunningError: if another server does so.
    :raises SettingsError: if an option is not valid.
    :raises OSError: if an address cannot be listened at.
    """
    share_heaps()
    with presence.holding(store, replaces_temporary=options.idle_seconds is None) as is_ours:
        path = presence.socket_path(store)
        addresses = [Address("", 0, path), *map(parse_address, options.listen)]
        listeners = open_listeners(addresses, tls_files=options.tls, insecure_plain_text=options.insecure_plain_text)
        start_manager = (lambda: _start_manager(store)) if options.embedded else None
        jobs = FileJobs(store, start_manager=start_manager, whose="the server")
        service = Service(jobs, embedded=options.embedded)
        server = Server(create_app(service), listeners, forwarded_allow_ips=options.trusted_proxies)
        _in_background(partial(_end_when_replaced, is_ours, server))
        if options.ends_with_input:
            _in_background(lambda: _end_with_input(server))
        if options.idle_seconds is not None:
            _in_background(partial(_end_when_idle, service, server, options.idle_seconds))
        if options.embedded:
            _in_background(lambda: _keep_manager(service))
        where = [str(listener) for listener in listeners]
        presence.publish(
            store,
            socket=str(path),
            listen=where[1:],
            is_temporary=options.idle_seconds is not None,
            embedded=options.embedded,
        )
        log.info("server %d serves %s at %s", os.getpid(), store.base_path, ", ".join(where))
        server.run()
        log.info("server %d ends", os.getpid())


def _start_manager(store: JobStore) -> None:
    warning = embedded_manager.start_if_none(store)
    if warning:
        log.warning("the embedded manager of %s: %s", store.base_path, warning)


def _end_when_replaced(is_ours: Callable[[], bool], server: Server) -> None:
    while is_ours():
        time.sleep(_KEEP_SECONDS)
    log.critical("the lock of the server was removed or replaced; server %d ends", os.getpid())
    server.stop()


def _keep_manager(service: Service) -> None:
    """Start a manager again if one has died while somebody waits for a job that has not ended."""
    store = service.jobs.store
    while True:
        time.sleep(_KEEP_SECONDS)
        try:
            if service.activity.is_any and not manager_status.is_running(store) and _has_work(service):
                service.jobs.ensure_manager()
        except (AirExecutorError, OSError) as error:
            log.warning("%s", error)


def _has_work(service: Service) -> bool:
    return not all(job.state.is_terminal for job in service.jobs.index().jobs())


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _end_with_input(server: Server) -> None:
    while os.read(0, 4096):  # the buffer of `sys.stdin` would be locked when Python ends
        pass
    log.info("the process that has started the server has ended")
    server.stop()


def _end_when_idle(service: Service, server: Server, seconds: float) -> None:
    while (left := seconds - service.activity.idle_seconds()) > 0:
        time.sleep(max(left, _SHORTEST_LOOK))
    log.info("nobody has asked for anything for %g s", seconds)
    server.stop()
