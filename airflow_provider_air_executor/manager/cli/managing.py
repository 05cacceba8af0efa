"""The commands about the manager."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.manager.cli import processes
from airflow_provider_air_executor.manager.cli.options import Opened, here_option, listen_options, open_store

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.manager.settings import Settings

log = logging.getLogger("air_executor.manager")

_SILENT_SECONDS = 10.0  # of a file system, after which it is said that it does not answer


@contextlib.contextmanager
def _saying_that_it_waits() -> Iterator[None]:
    """Say so if the file system does not answer. It is waited for, as a service is started before its server."""
    what = f"the file system of the base path has not answered for {_SILENT_SECONDS:g} s, and is waited for"
    timer = threading.Timer(_SILENT_SECONDS, click.echo, [f"air-executor: {what}"], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Patient(click.Command):
    """A command whose arguments are paths that may be on a file system which does not answer."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the arguments."""
        with _saying_that_it_waits():
            return super().make_context(*args, **more)


@click.command(cls=_Patient)
@here_option
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Default: config.yaml in the base path."
)
@click.option("--detach", is_flag=True, help="Run in the background, with its log in manager.log.")
@click.option("--replace", is_flag=True, help="End the manager that runs, and go on with what it has begun.")
@click.option("--refresh", is_flag=True, help="Let the manager that runs import anew what it has imported for tasks.")
@click.option("--poll-interval", metavar="SECONDS", help="Between two passes over everything (5).")
@click.option("--task-timeout", metavar="SECONDS", help="For tasks that do not say (no limit).")
@click.option("--max-concurrent-runners", metavar="N", help="Tasks that run at a time (10).")
@click.option("--capacity", metavar="JSON", help="Of this machine for tasks: cpus, memory, gpus (all that it has).")
@click.option("--max-concurrent", metavar="RUNNER=N,...", help="The same of other runners (1000).")
@click.option("--kill-grace", metavar="SECONDS", help="Between SIGTERM and SIGKILL (10).")
@click.option("--max-log-size", metavar="BYTES", help="A task whose log grows over it is killed (no limit).")
@click.option("--host-timeout", metavar="SECONDS", help="After which tasks of a lost machine are lost (300).")
@click.option("--idle-timeout", metavar="SECONDS", help="End after so long without work (never).")
@click.option("--keep-jobs", metavar="N", help="Ended jobs that are kept (all).")
@click.option("--keep-days", metavar="DAYS", help="After which a completed job is removed (never).")
@click.option("--keep-failed-days", metavar="DAYS", help="After which a failed job is removed (as --keep-days).")
@click.option("--metrics-address", metavar="ADDRESS", help="Serves metrics: HOST:PORT, or ./SOCKET (nowhere).")
@click.option("--metrics-otel/--no-metrics-otel", default=None, help="Sends metrics by OpenTelemetry (if configured).")
@listen_options
@click.option("--embedded", is_flag=True, hidden=True, help="With the defaults of a manager that Airflow starts.")
@click.option("--runner", metavar="NAME", help="What runs the tasks that do not say (local).")
@click.option(
    "--preload", metavar="MODULES", help="Imported once for all warm tasks, by commas; auto: what they import."
)
@click.option("--log-level", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (INFO).")
@click.option("--log-format", help="console or json (console).")
def manager(config: Path | None, detach: bool, replace: bool, refresh: bool, embedded: bool, **flags: Any) -> None:
    """Run the jobs of a base path.

    SIGTERM ends the manager, not the tasks: they go on, and the next manager adopts them.
    """
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.manager.settings import EMBEDDED, load_settings

    with _saying_that_it_waits():
        settings, warnings = load_settings(flags, config=config, defaults=EMBEDDED if embedded else {})
        store = JobStore(settings.base_path)
        click.get_current_context().find_root().obj = Opened(f"--base-path {store.base_path}", store)
        if refresh:
            _refresh(store)
            return
        if detach:
            processes.leave_task()
            for warning in warnings:  # the manager says them too, where few look
                click.echo(f"air-executor: {warning}", err=True)
        otherwise = "" if not replace and manager_status.is_running(store) else _check_base_path(store)
    if replace:
        processes.stop(store)
    if detach and (pid := processes.detach(store)):
        click.echo(f"manager {pid} runs the jobs of {store.base_path}")
    else:
        _run_manager(store, settings, warnings, otherwise)


def _check_base_path(store: JobStore) -> str:
    """Try what the file system can do, before a manager that runs there is ended: what is done otherwise, in a line.

    :raises UnfitBasePathError: if a promise cannot be kept there.
    :raises NoLocksError: if it has no locks.
    """
    from airflow_provider_air_executor.jobs import base_path_check

    store.create_directories()
    findings = base_path_check.check(store.base_path, notification=False)
    base_path_check.refuse(store.base_path, store.lock_path, findings)
    return base_path_check.what_is_otherwise(findings)


def _refresh(store: JobStore) -> None:
    from airflow_provider_air_executor.jobs import manager_control

    pid = manager_status.pid(store)
    if pid is None:
        raise exceptions.ManagerError(f"no manager is running on {store.base_path}")
    manager_control.refresh(store)
    click.echo(f"manager {pid} starts another fork server; tasks start from it as soon as it is ready")


def _run_manager(store: JobStore, settings: Settings, warnings: list[str], otherwise: str) -> None:
    from airflow_provider_air_executor.engines.children import Children
    from airflow_provider_air_executor.engines.local.engine import LocalEngine
    from airflow_provider_air_executor.engines.local.holdings import holdings_of
    from airflow_provider_air_executor.engines.local.preloading import preload_of
    from airflow_provider_air_executor.engines.registry import Engines
    from airflow_provider_air_executor.jobs import base_path_check
    from airflow_provider_air_executor.manager.lock import ManagerLock
    from airflow_provider_air_executor.manager.loop import Loop
    from airflow_provider_air_executor.manager.manager import Manager
    from airflow_provider_air_executor.manager.server_child import serving
    from airflow_provider_air_executor.system.environment import as_given
    from airflow_provider_air_executor.system.mounts import mount_of
    from airflow_provider_air_executor.system.processes import can_inspect

    set_up_logging(settings)
    if not can_inspect():
        raise exceptions.ManagerError(
            "/proc is not mounted here: without it, a task that runs looks like one that has ended"
        )
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent may have blocked SIGTERM
    with ManagerLock(store) as lock, serving(store, settings):
        for warning in warnings:
            log.warning(warning)
        children, environment = Children(), as_given(os.environ)
        local = LocalEngine(
            store,
            environment,
            children,
            preload=preload_of(settings.preload, store.base_path),
            holdings=holdings_of(store, environment, children, **settings.capacity.model_dump()),
            host_timeout=settings.host_timeout,
        )
        manager = Manager(store, settings, Engines(store, settings, local, environment, children))
        polls = "" if manager.shared.notifier.works else base_path_check.NOT_NOTIFIED
        if otherwise or polls:
            mount = mount_of(store.base_path)
            said = "; ".join(filter(None, (otherwise, polls)))
            log.info("the file system of the base path (%s): %s", mount.kind if mount else "of unknown kind", said)
        Loop(manager, lock).run()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, self.datefmt),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(settings: Settings) -> None:
    """Write the log to standard error, as the settings say."""
    handler = logging.StreamHandler()
    style = "%(asctime)s %(levelname)s %(message)s"
    formatter = (_JsonFormatter if settings.log_format == "json" else logging.Formatter)(style, "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.raiseExceptions = False  # a full disk must not end the manager


@click.command()
@here_option
def stop(base_path: str | None) -> None:
    """End the manager of a base path; tasks that run go on."""
    store = open_store(base_path)
    pid = processes.stop(store)
    if pid is None:
        click.echo(f"no manager is running on {store.base_path}")
    else:
        click.echo(f"manager {pid} has ended")
