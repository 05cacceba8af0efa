"""Runs one workload of Airflow: ``python -m airflow_provider_air_executor.workload`` is what the executor's jobs run.

The workload is in a file in the job's directory, which is removed as soon as it is read, since it holds a token. The
supervisor reports to Airflow how the task has ended. The exit code says whether it could, see :class:`ExitCode`.
"""

from __future__ import annotations

import configparser
import contextlib
import ctypes
import enum
import functools
import getpass
import importlib
import importlib.util
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_air_executor import zygote
from airflow_provider_air_executor.dag_files import DagFile
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.rehearsal import rehearse
from airflow_provider_air_executor.system import import_report, process_family
from airflow_provider_air_executor.system.environment import GPUS_VARIABLE, RUN_VARIABLE
from airflow_provider_air_executor.system.processes import kill_what_else_was_started_by
from airflow_provider_air_executor.task_forkers import TaskForkers

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecuteCallback, ExecuteTask
    from airflow.sdk.api.client import Client

MODULE = "airflow_provider_air_executor.workload"
WORKLOAD_FILE = "workload.json"

# In place of Airflow's defaults in [workers]. A task that has done its work must be able to say so after the API server
# was away for a while: it tries for two minutes instead of 15 s, and sees within 5 s that it is back. A request that
# the server is slow to answer is not sent again after 5 s: it would be carried out twice, and on SQLite the late one of
# two that say a task has started undoes that it has succeeded meanwhile.
_DEFAULTS = {
    "execution_api_retries": ("5", "40"),
    "execution_api_timeout": ("5.0", "30.0"),
    "execution_api_retry_wait_max": ("90.0", "5.0"),
}
# Found by comparing what a task has imported with what the fork server has.
_PRELOADED = (
    "airflow.executors.workloads",
    "airflow.executors.base_executor",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.callback_supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.dag_processing.dagbag",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.bundles.manager",
    "airflow.serialization.serialized_objects",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.sensors.python",
    "airflow_provider_air_executor.operators",
    "airflow_provider_air_executor.sensors",
    "encodings.idna",
    "jinja2.ext",
    "setproctitle",
)
_PR_SET_CHILD_SUBREAPER = 36
_MAX_KEY = 500  # characters, as the field preload_key of a task may have
_END_SECONDS = 0.01  # between two looks at a task that is about to end


class ExitCode(enum.IntEnum):
    """How a workload has ended. The numbers are those of ``sysexits.h``."""

    REPORTED = 0  # the supervisor has reported its end to Airflow, be it success or failure
    BAD_WORKLOAD = 65  # the file is missing, or not a workload
    UNREACHABLE = 69  # the API server could not be reached, or failed
    SUPERVISOR_FAILED = 70  # the supervisor failed otherwise; or the callback failed
    NO_AIRFLOW = 72  # it cannot be imported
    SUPERSEDED = 73  # Airflow says that the task runs already, or is not to run any more
    REFUSED = 77  # the API server did not accept the token
    NOT_PREPARED = 78  # lines that were to run before it have failed; it was not begun


def preload() -> None:
    """Import what nearly every task needs; called once in the fork server."""
    if not _has_airflow():  # each task says so in its log
        return
    _prepare()
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):  # not every Airflow has all of them
            importlib.import_module(name)
    _warm_up()


def renew() -> bool:
    """Make this process fit to run another workload, as LocalExecutor's workers do; False if it had better end.

    What tests connections runs code of hooks in this process, and callbacks are forked from it.
    """
    if _terminated or _kinds != {"ExecuteTask"}:
        return False
    _forwarding.clear()
    return True


def _warm_up() -> None:
    """Do once what is done late otherwise, by each task for itself."""
    import jinja2.lexer
    from airflow.sdk.api.client import Client
    from airflow.sdk.execution_time import comms, task_runner
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    _workloads()
    ensure_secrets_backend_loaded()
    Client(base_url="http://localhost/execution/", token="").close()
    jinja2.lexer.get_lexer(jinja2.Environment(autoescape=True))  # kept by jinja2, for all with these delimiters
    _spare_empty_pools()
    _share_type_adapters(comms, "ToTask")
    _share_type_adapters(task_runner, "JsonValue", "StartupDetails")
    _load_plugins_once()
    rehearse()


def _spare_empty_pools() -> None:
    """Let Airflow not make new pools of connections in each forked process as long as the present ones are empty.

    It does so in a handler that SQLAlchemy recommends, for a process must not use connections of another one.
    """
    from airflow import settings

    engines = getattr(settings, "engine", None), getattr(getattr(settings, "async_engine", None), "sync_engine", None)
    for engine in filter(None, engines):
        engine.dispose = functools.partial(_dispose_if_used, engine, engine.dispose)


def _dispose_if_used(engine: Any, dispose: Callable[..., None], close: bool = True) -> None:
    pool = engine.pool
    numbers = [count() for name in ("checkedin", "checkedout") if callable(count := getattr(pool, name, None))]
    if close or len(numbers) < 2 or any(numbers):
        dispose(close=close)


def _share_type_adapters(module: Any, *names: str) -> None:
    """Let a module of Airflow's make its pydantic adapters once, and not in each task.

    :param names: the types in it for which they are made now.
    """
    make = getattr(module, "TypeAdapter", None)
    if make is None:
        return
    made: dict[int, tuple[Any, Any]] = {}  # by the identity of a type, which stays as long as it is held here

    def shared(kind: Any) -> Any:
        if id(kind) not in made:
            made[id(kind)] = kind, make(kind)
        return made[id(kind)][1]

    module.TypeAdapter = shared
    for name in names:
        if hasattr(module, name):
            shared(getattr(module, name))


def _load_plugins_once() -> None:
    """Import the plugins of installed packages here, so that no task has to search the packages for them.

    Airflow goes on to load them in each task. Those that start threads are left to the tasks altogether: it is tried
    out in another process first.
    """
    from airflow.sdk import plugins_manager

    find = getattr(plugins_manager, "_load_entrypoint_plugins", None)
    if find is None or not _leaves_no_threads(find):
        return
    found = find()
    plugins_manager._load_entrypoint_plugins = lambda: found  # type: ignore[attr-defined]  # noqa: SLF001


def _leaves_no_threads(call: Callable[[], Any]) -> bool:
    """Whether a call succeeds, and the process has one thread after it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = int(threading.active_count() != 1)
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


_KEPT = (RUN_VARIABLE, GPUS_VARIABLE)
_kinds: set[str] = set()  # of the workloads that this process has run


def main() -> int:
    """Run the workload of this job."""
    # A Pod has attached files in a directory of its own.
    directory = Path(os.environ.get("AIR_EXECUTOR_ATTACHED") or os.environ["AIR_EXECUTOR_JOB_DIR"])
    if not _has_airflow():
        with contextlib.suppress(OSError):
            (directory / WORKLOAD_FILE).unlink()
        _log_line(
            f"{sys.executable} on {os.uname().nodename} has no Airflow, which Airflow's own tasks need: install "
            "airflow-provider-air-executor with Airflow there, and run air-executor from there and not from "
            "air-executor.pyz"
        )
        return ExitCode.NO_AIRFLOW
    if not _prepare.cache_info().currsize:  # it has not been forked from one that has Airflow
        _take_settings(directory / WORKLOAD_FILE)
    _prepare()
    _workloads()  # before the token is read, which is renewed only until then
    _forkers.begin()  # now, as long as this process is as it was
    # A task of Airflow's need not know: jobs that it submits are no business of the executor's.
    for name in [name for name in os.environ if name.startswith("AIR_EXECUTOR_") and name not in _KEPT]:
        del os.environ[name]
    try:
        content = json.loads(_read_and_remove(directory / WORKLOAD_FILE))
        workload = _workloads().validate_python(content["workload"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        # A validation error shows what it got: never print it, it may hold the token.
        why = error.strerror if isinstance(error, OSError) else "it is not a workload that this Airflow knows"
        _log_line(f"{WORKLOAD_FILE} cannot be run: {why}")
        return ExitCode.BAD_WORKLOAD
    _kinds.add(workload.type)
    _share_dag_file(workload)
    _leave_managers_directory(content.get("directory"))
    _adopt_orphans()
    code = 0
    try:
        code = _run(workload, content["server"])
    except Exception as error:  # noqa: BLE001 - whatever the supervisor raises
        return _explain(error)
    finally:
        if code < 0 and not _terminated:
            _say_signal(-code)
        if code < 0 or _terminated:  # it is not wanted any more, and neither are the processes that it has started
            kill_what_else_was_started_by(os.environ.get(RUN_VARIABLE, ""))
    return ExitCode.REPORTED


def _take_settings(path: Path) -> None:
    """Set the variables that travel with a workload to another machine, before Airflow is imported.

    Another process reads them: the one from which the task is forked must not have a token in its memory.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            content = json.loads(files.read(path)[0])
            with open(writer, "wb") as pipe:
                pipe.write(json.dumps(content.get("environment") or {}).encode())
        finally:  # what is wrong with the file is said by whoever reads it next
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        found = json.loads(pipe.read() or b"{}")
    os.waitpid(pid, 0)
    os.environ.update(found)


def _has_airflow() -> bool:
    return importlib.util.find_spec("airflow") is not None


def _adopt_orphans() -> None:
    """Be the parent of what processes of the task leave behind (Linux): so it is found, however it may hide."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans(process: Any) -> None:
    """Reap orphans that have ended: while this process lives, no other one does.

    :param process: the supervised one, which the supervisor reaps. Processes of our process group are reaped by
        whoever has started them.
    """
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == process.pid or os.getpgid(ended.si_pid) == os.getpgid(0):
                return
            os.waitpid(ended.si_pid, 0)


def _read_and_remove(path: Path) -> bytes:
    data, _ = files.read(path)
    path.unlink()
    return data


def _leave_managers_directory(directory: str | None) -> None:
    """Go where a task may write without harm: the manager is in its job filesystem, beside its ``config.yaml``.

    :param directory: where the scheduler works; if there is no such directory here, it is the root directory.
    """
    for where in (directory, "/"):
        if where is not None:
            with contextlib.suppress(OSError):
                os.chdir(where)
                if "PWD" in os.environ:  # a shell that has started this process has set it
                    os.environ["PWD"] = where
                return


@functools.cache
def _workloads() -> Any:
    """The adapter that parses a workload; slow to make."""
    from airflow.executors import workloads
    from pydantic import TypeAdapter

    return TypeAdapter(workloads.All)


_forkers = TaskForkers()


def _share_dag_file(workload: Any) -> None:
    """Have the DAG file of a task executed ahead, if the manager says that it may be, or watched if it wants to know.

    It must not have changed the environment that this process has by now: a file is executed in that of its task.
    """
    from airflow.sdk.configuration import conf

    hint = process_family.hint
    seconds = conf.getfloat("dag_processor", "min_file_process_interval", fallback=0.0)
    if not hint or workload.type != "ExecuteTask" or not seconds or not _executes_ahead():
        return
    bundle, path = workload.bundle_info, os.fspath(workload.dag_rel_path)
    files_of_it, takes = hint.get("files") or {}, hint.get("seconds") or 0.0
    dag_file = DagFile(preload_key(workload), bundle.name, bundle.version, path, files_of_it, seconds, takes)
    _forkers.share(dag_file, is_watched=bool(hint.get("watch")), after=hint.get("after") or 0)


@functools.cache
def _executes_ahead() -> bool:
    from airflow.sdk.configuration import conf

    return bool(conf.getboolean("air_executor", "execute_ahead", fallback=True))


def _say_signal(number: int) -> None:
    """Say by which signal a task was ended. Airflow says so in the log file alone, which may be gone with a Pod."""
    why = "; it may have used more memory than it may" if number == signal.SIGKILL else ""
    _log_line(f"the process of the task was ended by signal {number} ({signal.strsignal(number)}){why}")


def _log_line(text: str) -> None:
    print(f"air-executor: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the log of the job


@functools.cache
def _prepare() -> None:
    """Set this process up, once; a forked one inherits that from the fork server."""
    _set_defaults()
    from airflow.sdk.log import configure_logging

    configure_logging(output=sys.stdout.buffer, json_output=True)
    _notice_end_of_task()
    _send_sigterm_once()
    _put_off_first_heartbeat()
    if zygote.is_possible():
        zygote.start_with(_forkers)
    _keep_client()
    _leave_private_directories()
    _report_imports()


def watched_files() -> list[str]:
    """The files on which all that was prepared depends: Airflow's configuration."""
    return [_configuration()]


def _configuration() -> str:
    home = files.expanded(os.environ.get("AIRFLOW_HOME") or "~/airflow")
    return os.environ.get("AIRFLOW_CONFIG") or os.path.join(home, "airflow.cfg")


def _set_defaults() -> None:
    """Change some of Airflow's defaults for this process, unless they have been changed already.

    Airflow reads them when it is imported, and importing its configuration imports all that reads them: what is
    configured is found out without it. The file that Airflow makes by itself has all defaults in it.
    """
    configured = configparser.RawConfigParser(strict=False, allow_no_value=True)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        configured.read(_configuration())
    for key, (default, ours) in _DEFAULTS.items():
        if configured.get("workers", key, fallback=default) == default:
            os.environ.setdefault(f"AIRFLOW__WORKERS__{key.upper()}", ours)


def _notice_end_of_task() -> None:
    """Let the supervisor see at once that its task has ended.

    A task that ends closes its pipes a moment before it can be waited for. A supervisor that looks in between waits
    for a pipe next, when there is none any more, and so for 5 s; until then it would keep its slot. A zygote says when
    its task has ended; otherwise the supervisor looks again and again.
    """
    from airflow.sdk.execution_time.supervisor import WatchedSubprocess

    serve = getattr(WatchedSubprocess, "_service_subprocess", None)
    if serve is None:
        return

    @functools.wraps(serve)
    def serve_briefly(self: Any, max_wait_time: float, *args: Any, **kwargs: Any) -> Any:
        _forward_once(self)
        _reap_orphans(self)
        if getattr(self, "_open_sockets", True):
            return serve(self, max_wait_time, *args, **kwargs)
        if zygote.waits_for_end(self._process, max_wait_time):
            code = self._check_subprocess_exit(*args, **kwargs)
            if code is not None:
                return code
        return serve(self, min(max_wait_time, _END_SECONDS), *args, **kwargs)

    WatchedSubprocess._service_subprocess = serve_briefly  # type: ignore[method-assign]  # noqa: SLF001


_open = contextlib.ExitStack()  # what this process keeps until its end
_kept: dict[str, Client] = {}  # by the address of the server


def _keep_client() -> None:
    """Let a supervisor that stays use its connection to the API server for its next task, with that task's token."""
    from airflow.sdk.api.client import BearerAuth
    from airflow.sdk.execution_time import supervisor

    ensure = getattr(supervisor, "_ensure_client", None)  # since Airflow 3.3
    if ensure is None:
        return

    @contextlib.contextmanager
    def ensure_kept(
        server: str | None, token: str, client: Client | None = None, dry_run: bool = False
    ) -> Iterator[Client]:
        if client or dry_run or not server or not process_family.may_stay:
            with ensure(server, token, client=client, dry_run=dry_run) as made:
                yield made
            return
        if server not in _kept:
            _kept[server] = _open.enter_context(ensure(server, token))
        kept = _kept[server]
        kept.auth = BearerAuth(token)
        yield kept

    supervisor._ensure_client = ensure_kept  # noqa: SLF001


def _put_off_first_heartbeat() -> None:
    """Let the first heartbeat of a task come when it is due, and not at once after the request that says it runs.

    That request is a heartbeat, too. For the API server the second one was a fourth of what a short task costs it.
    """
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess

    begin = ActivitySubprocess._on_child_started  # noqa: SLF001

    @functools.wraps(begin)
    def begin_with_time(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin(self, *args, **kwargs)
        self._last_heartbeat_attempt = time.monotonic()

    ActivitySubprocess._on_child_started = begin_with_time  # type: ignore[method-assign]  # noqa: SLF001


_terminated: set[int] = set()  # processes of tasks that have got SIGTERM
_forwarding: set[int] = set()  # those whose supervisor hands it on as we want it


def _send_sigterm_once() -> None:
    """Let a task have one SIGTERM, although two want its end: the manager, and its supervisor.

    An operator's ``on_kill`` runs in the handler of the signal. A second one would run it again, inside the first.
    """
    from airflow.sdk.execution_time.supervisor import WatchedSubprocess

    kill = WatchedSubprocess.kill

    @functools.wraps(kill)
    def kill_once(
        self: Any, signal_to_send: signal.Signals = signal.SIGINT, escalation_delay: float = 5.0, force: bool = False
    ) -> None:
        if signal_to_send != signal.SIGTERM or self.pid not in _terminated:
            if signal_to_send == signal.SIGTERM:
                _terminated.add(self.pid)
            kill(self, signal_to_send, escalation_delay, force)
            return
        kill(self, signal.SIGCONT, escalation_delay)  # which does nothing but wait as long as for SIGTERM
        if force:
            kill(self, signal.SIGKILL, escalation_delay)

    WatchedSubprocess.kill = kill_once  # type: ignore[method-assign]


def _forward_once(process: Any) -> None:
    """Let the supervisor hand SIGTERM on if its task has not got one yet, and then to its whole process group."""
    forward = signal.getsignal(signal.SIGTERM)
    if not callable(forward) or process.pid in _forwarding:
        return

    def forward_once(number: int, frame: Any) -> None:
        if process.pid in _terminated:
            return
        _terminated.add(process.pid)
        signal_group = getattr(process, "_signal_subprocess", None)  # since Airflow 3.3
        if signal_group is None:
            forward(number, frame)
        else:
            with contextlib.suppress(ProcessLookupError, process._process.ProcessNotFound):  # noqa: SLF001
                signal_group(signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward_once)
    _forwarding.add(process.pid)


def _leave_private_directories() -> None:
    """Let no task of another user (``run_as_user``) be in a directory that is not open to all: it could not work there.

    Airflow finds out whose it is when it has read the DAG file, and begins anew as that user.
    """
    from airflow.sdk.configuration import conf
    from airflow.sdk.execution_time import task_runner

    parse = getattr(task_runner, "parse", None)
    if parse is None:
        return

    @functools.wraps(parse)
    def parse_and_move(*args: Any, **kwargs: Any) -> Any:
        ti = parse(*args, **kwargs)
        user = getattr(ti.task, "run_as_user", None) or conf.get("core", "default_impersonation", fallback=None)
        if user and user != getpass.getuser() and not _is_open_to_all():
            os.chdir("/")
        return ti

    task_runner.parse = parse_and_move


def _is_open_to_all() -> bool:
    """Whether any user may enter the working directory."""
    try:
        here = Path.cwd()
        return all(path.stat().st_mode & stat.S_IXOTH for path in (here, *here.parents))
    except OSError:
        return False


def preload_key(workload: Any) -> str:
    """What the imports of a task are counted under: its DAG file, within its bundle.

    :param workload: the workload, or the details that a task gets when it starts.
    """
    key = f"{workload.bundle_info.name}/{os.fspath(workload.dag_rel_path)}"
    return "".join(letter if letter.isprintable() else "?" for letter in key[-_MAX_KEY:])


def _report_imports() -> None:
    """Let each task report at its end which installed modules it has imported, if the fork server is to learn them."""
    from airflow.sdk.execution_time import task_runner

    parse: Callable[..., Any] | None = getattr(task_runner, "parse", None)
    main: Callable[[], None] | None = getattr(task_runner, "main", None)
    if parse is None or main is None:
        return
    parsed: list[tuple[str, float, dict[str, str], set[str]]] = []  # by this process

    @functools.wraps(parse)
    def parse_and_measure(what: Any, *args: Any, **kwargs: Any) -> Any:
        if not import_report.is_wanted():
            return parse(what, *args, **kwargs)
        before, began = import_report.environment(), time.process_time()
        ti = parse(what, *args, **kwargs)
        parsed.append((preload_key(what), time.process_time() - began, before, import_report.changes(before)))
        return ti

    @functools.wraps(main)
    def main_and_report() -> None:
        parsed.clear()
        try:
            main()
        finally:
            with contextlib.suppress(Exception):  # the task has ended, and this is no part of it
                for key, seconds, before, changed in parsed:
                    variables = changed | import_report.changes(before)
                    import_report.send(key, parse_seconds=seconds, changed=variables)

    task_runner.parse, task_runner.main = parse_and_measure, main_and_report


def _run(workload: Any, server: str) -> int:
    from airflow.executors.base_executor import BaseExecutor

    if hasattr(BaseExecutor, "run_workload"):  # since Airflow 3.3
        code: int = BaseExecutor.run_workload(workload, server=server, subprocess_logs_to_stdout=True)
        return code
    # Here the task process is in our process group, and gets the SIGTERM that we get: we stay to report its end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    return _run_task(workload, server) if workload.type == "ExecuteTask" else _run_callback(workload)


def _run_task(workload: ExecuteTask, server: str) -> int:
    from airflow.sdk.execution_time.supervisor import supervise

    return supervise(
        ti=workload.ti,
        bundle_info=workload.bundle_info,
        dag_rel_path=workload.dag_rel_path,
        token=workload.token,
        server=server,
        log_path=workload.log_path,
        subprocess_logs_to_stdout=True,
        sentry_integration=workload.sentry_integration,
    )


def _run_callback(workload: ExecuteCallback) -> int:
    import structlog
    from airflow.executors.workloads.callback import execute_callback_workload  # type: ignore[attr-defined]

    succeeded, error = execute_callback_workload(workload.callback, structlog.get_logger(MODULE))
    if not succeeded:
        raise RuntimeError(error or "the callback failed")
    return 0


def _explain(error: Exception) -> ExitCode:
    """The exit code for an exception of a supervisor."""
    import httpx
    from airflow.sdk.exceptions import TaskAlreadyRunningError

    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if isinstance(error, TaskAlreadyRunningError) or status in (404, 409, 410):
        _log_line(f"this task runs already, or is not to run any more: {error}")
        return ExitCode.SUPERSEDED
    if status in (401, 403):
        _log_line(f"the API server did not accept the token: {error}")
        return ExitCode.REFUSED
    if isinstance(error, httpx.TransportError) or (status is not None and status >= 500):
        _log_line(f"the API server could not be reached, or failed: {type(error).__name__}: {error}")
        return ExitCode.UNREACHABLE
    with contextlib.suppress(Exception):
        import structlog

        structlog.get_logger(MODULE).exception("the workload failed", exc_info=error)
    return ExitCode.SUPERVISOR_FAILED


if __name__ == "__main__":
    # The module that the fork server has imported, with what it has prepared, and not this second one.
    sys.exit(importlib.import_module(MODULE).main())
