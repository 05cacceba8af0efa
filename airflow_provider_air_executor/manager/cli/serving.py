"""The command that serves a job filesystem to clients on other machines, or of other users."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli import processes
from airflow_provider_air_executor.manager.cli.options import here_option, listen_options, open_store

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.manager.settings import Settings
    from airflow_provider_air_executor.server.presence import ServerInfo
    from airflow_provider_air_executor.server.running import Options

_START_SECONDS = 60.0
_PAUSE_SECONDS = 0.02
_LOG, _LOG_BYTES = "server.log", 10_000_000  # a longer one is renamed when a detached server starts
_LAST_BYTES = 2_000  # of the log, which say why it could not start


@click.command()
@here_option
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Default: config.yaml in the base path."
)
@listen_options
@click.option("--embedded", is_flag=True, help="Start a manager when one is needed and none runs.")
@click.option(
    "--ensure", is_flag=True, help="Start one in the background if none runs, which ends after 10 minutes unasked."
)
@click.option("--stdio", is_flag=True, hidden=True, help="With --ensure: be a connection to it, for SSH.")
@click.option("--log-level", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (INFO).")
@click.option("--log-format", help="console or json (console).")
@click.option("--idle-seconds", type=click.FloatRange(min=0.1), hidden=True, help="End after so long unasked.")
@click.option("--ends-with-input", is_flag=True, hidden=True, help="End when standard input does.")
def serve(
    config: Path | None,
    embedded: bool,
    ensure: bool,
    stdio: bool,
    idle_seconds: float | None,
    ends_with_input: bool,
    **flags: Any,
) -> None:
    """Answer clients that cannot see the base path: on other machines, or by SSH.

    They are answered at the Unix socket server.sock in the base path, which only its owner can open, and at each
    --listen, where they need a token (air-executor token). SIGHUP reads the certificate again.
    """
    from airflow_provider_air_executor.manager.cli.bridge import bridge
    from airflow_provider_air_executor.manager.settings import load_settings
    from airflow_provider_air_executor.remote.protocol import HIGHEST

    store = _store(flags.pop("base_path"))
    settings, warnings = load_settings({**flags, "base_path": str(store.base_path)}, config=config)
    if ensure:
        info = _ensure(store, embedded=embedded)
        if stdio:
            bridge(info.socket)
        else:
            click.echo(json.dumps({"socket": info.socket, "version": info.version, "protocol": HIGHEST}))
        return
    for warning in warnings:
        click.echo(f"air-executor: {warning}", err=True)
    _serve(store, settings, embedded=embedded, idle_seconds=idle_seconds, ends_with_input=ends_with_input)


def _store(base_path: str | None) -> JobStore:
    """The job filesystem that is meant: one that is there, or else a new one."""
    with contextlib.suppress(exceptions.ManagerError):
        return open_store(base_path)
    return open_store(base_path, must_exist=False)


def _serve(store: JobStore, settings: Settings, **more: Any) -> None:
    from airflow_provider_air_executor.manager.cli.managing import set_up_logging
    from airflow_provider_air_executor.server import running

    set_up_logging(settings)
    # The parent may have blocked SIGTERM. SIGHUP waits until somebody listens to it: it would end the process.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGHUP})
    running.serve(store, _options(settings)._replace(**more))


def _options(settings: Settings) -> Options:
    """How the settings say that the server is run.

    :raises SettingsError: if they do not fit together.
    """
    from airflow_provider_air_executor.manager.server_child import tls_files
    from airflow_provider_air_executor.server.running import Options

    return Options(settings.listen, tls_files(settings), settings.insecure_plain_text, settings.trusted_proxies)


def _ensure(store: JobStore, *, embedded: bool) -> ServerInfo:
    """Start what does not run; where the server answers.

    Any number of processes may do so at once: one starts it, and the others wait for that.

    :param embedded: whether managers are started when one is needed; a server that was started without that, and would
        end by itself, is replaced then.
    """
    from airflow_provider_air_executor.jobs import embedded_manager
    from airflow_provider_air_executor.jobs.file_jobs import FileJobs
    from airflow_provider_air_executor.server import presence

    processes.leave_task()
    info = presence.running(store)
    if info is None or (embedded and info.is_temporary and not info.embedded):
        with FileJobs(store).only_one("serverstart"):
            info = presence.running(store)
            if info is not None and embedded and info.is_temporary and not info.embedded:
                presence.end(info)
                _wait_for_end(store)
                info = None
            info = info or _start(store, embedded=embedded)
    if embedded:
        embedded_manager.start_if_none(store)
    return info


def _start(store: JobStore, *, embedded: bool) -> ServerInfo:
    """Start a server that outlives this process, and wait until it answers.

    :raises ManagerError: if it cannot be started; the message holds what it said.
    """
    import subprocess  # late: all commands import this module

    from airflow_provider_air_executor.server import presence
    from airflow_provider_air_executor.server.presence import IDLE_SECONDS
    from airflow_provider_air_executor.system.python import module_command

    words = module_command("airflow_provider_air_executor.manager.cli", "serve")
    words += ["--base-path", str(store.base_path), "--idle-seconds", str(IDLE_SECONDS)]
    words += ["--embedded"] if embedded else []
    with _log(store) as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=store.base_path, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll()
        info = presence.running(store)
        if info is not None:
            return info
        if ended is not None and not presence.is_running(store):
            raise exceptions.ManagerError(f"the server could not start: {_last_words(store)}")
        time.sleep(_PAUSE_SECONDS)
    raise exceptions.ManagerError(f"the server did not start within {_START_SECONDS:g} s; see {store.base_path / _LOG}")


def _wait_for_end(store: JobStore) -> None:
    """Wait until no server holds a base path.

    :raises ManagerError: if that takes too long.
    """
    from airflow_provider_air_executor.server import presence

    deadline = time.monotonic() + _START_SECONDS
    while presence.is_running(store):
        if time.monotonic() > deadline:
            raise exceptions.ManagerError(f"the server of {store.base_path} does not end")
        time.sleep(_PAUSE_SECONDS)


def _log(store: JobStore) -> Any:
    store.create_directories()
    path = store.base_path / _LOG
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    return open(os.open(path, flags, 0o600), "ab")


def _last_words(store: JobStore) -> str:
    """The end of the log of the server, in one line."""
    try:
        text = (store.base_path / _LOG).read_bytes()[-_LAST_BYTES:].decode(errors="replace")
    except OSError as error:
        return str(error)
    return " ".join(text.split()[-60:])
