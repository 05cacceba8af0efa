"""``air-executor``: the command line.

Exit codes: 0 done; 1 the job failed, or the work could not be done; 2 the call or the input is not valid;
3 there is no such job; 4 it is taken: a job of that name exists, another manager runs, or the job's state forbids it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import __version__, exceptions
from airflow_provider_air_executor.jobs import manager_status

# The records need pydantic, which takes longer to import than all else: what does without it does not wait for it.
if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.models import Job
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.manager.settings import Settings

_DETACH_SECONDS = 20.0  # a manager takes the lock in a fraction of a second, on a busy machine somewhat later
_STOP_SECONDS = 20.0
_NUMBER_SECONDS = 2.0
_FOLLOW_SECONDS = 0.2
_LOG_BYTES = 10_000_000  # a manager.log longer than this is renamed when a detached manager starts

_EXIT_CODES: tuple[tuple[type[exceptions.AirExecutorError], int], ...] = (
    (exceptions.JobNotFoundError, 3),
    (exceptions.JobExistsError, 4),
    (exceptions.JobStateError, 4),
    (exceptions.ManagerRunningError, exceptions.ManagerRunningError.exit_code),
    (exceptions.InvalidJobError, 2),
    (exceptions.SettingsError, 2),
    (exceptions.AirExecutorError, 1),
)


class _Commands(click.Group):
    """Commands whose errors become one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except exceptions.AirExecutorError as error:
            click.echo(f"air-executor: {error}{_where_it_is(error, ctx.obj)}", err=True)
            ctx.exit(next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
        except (BrokenPipeError, KeyboardInterrupt):
            # Somebody has seen enough. What is still buffered must not raise again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(130)
        except OSError as error:
            click.echo(f"air-executor: {_in_words(error, ctx.obj)}", err=True)
            ctx.exit(1)


def _where_it_is(error: exceptions.AirExecutorError, store: JobStore | None) -> str:
    """Where else there is a job of a name that was not found, if there is one."""
    if store is None or not isinstance(error, exceptions.JobNotFoundError):
        return ""
    found = [str(other) for other in _others(store) if (other / "jobs" / error.job_name).is_dir()]
    return f"; one of this name is in {' and '.join(found)} (--base-path)" if found else ""


def _in_words(error: OSError, store: JobStore | None) -> str:
    """The message of a failed operation: the path, the error, and the user who may do it."""
    path = error.filename if isinstance(error.filename, str) else str(store.base_path) if store else None
    if path is None:
        return str(error)
    owner = _owner(Path(path)) if error.errno in (errno.EACCES, errno.EPERM) else None
    return f"{path}: {error.strerror}" + (f"; {owner[0]} belongs to {owner[1]}, who may do this" if owner else "")


def _owner(path: Path) -> tuple[Path, str] | None:
    """The directory of another user that denies access to a path, and the name of the user."""
    import pwd

    for each in (path, *path.parents):
        with contextlib.suppress(OSError):
            if not os.access(each, os.X_OK | os.W_OK) and (uid := each.stat().st_uid) != os.geteuid():
                with contextlib.suppress(KeyError):
                    return each, pwd.getpwuid(uid).pw_name
                return each, f"user {uid}"
    return None


def _base_path(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--base-path",
        envvar="AIR_EXECUTOR_BASE_PATH",
        type=click.Path(file_okay=False),
        help="Directory that holds jobs/ (or AIR_EXECUTOR_BASE_PATH; default: .air-executor).",
    )(function)


def _json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def _store(base_path: str | None, *, must_exist: bool = True) -> JobStore:
    from airflow_provider_air_executor.jobs.store import JobStore

    if base_path is None:
        from airflow_provider_air_executor.manager.settings import load_settings

        base_path = load_settings({})[0].base_path
    store = click.get_current_context().find_root().obj = JobStore(base_path)
    if must_exist and not store.base_path.is_dir():
        others = _others(store)
        seen = f", but at {' and '.join(map(str, others))}" if others else ""
        raise exceptions.ManagerError(
            f"there is no job filesystem at {store.base_path}{seen}; give --base-path, or set AIR_EXECUTOR_BASE_PATH"
        )
    return store


def _others(store: JobStore) -> list[Path]:
    """Where else there are job filesystems: those of operators and of the executor, in Airflow's home."""
    from airflow_provider_air_executor.jobs import files

    home = Path(files.expanded(os.environ.get("AIRFLOW_HOME") or "~/airflow"))
    return sorted({path.parent for path in home.glob("air-executor*/jobs")} - {store.base_path})


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="air-executor")
def main() -> None:
    """Run multi-step shell jobs that are plain files.

    Exit codes: 0 done, 1 failed, 2 not valid, 3 no such job, 4 taken.
    """


# -- the manager -------------------------------------------------------------------------------------------


@main.command()
@_base_path
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Default: config.yaml in the base path."
)
@click.option("--detach", is_flag=True, help="Run in the background, with its log in manager.log.")
@click.option("--replace", is_flag=True, help="End the manager that runs, and go on with what it has begun.")
@click.option("--poll-interval", metavar="SECONDS", help="Between two passes over everything (5).")
@click.option("--task-timeout", metavar="SECONDS", help="For tasks that do not say (no limit).")
@click.option("--max-concurrent-runners", metavar="N", help="Tasks that run at a time (10).")
@click.option("--kill-grace", metavar="SECONDS", help="Between SIGTERM and SIGKILL (10).")
@click.option("--max-log-size", metavar="BYTES", help="A task whose log grows over it is killed (no limit).")
@click.option("--idle-timeout", metavar="SECONDS", help="End after so long without work (never).")
@click.option("--runner", metavar="NAME", help="What runs the tasks that do not say (local).")
@click.option("--preload", metavar="MODULES", help="Imported once for all warm tasks, separated by commas.")
@click.option("--log-level", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (INFO).")
@click.option("--log-format", help="console or json (console).")
def manager(config: Path | None, detach: bool, replace: bool, **flags: Any) -> None:
    """Run the jobs of a base path.

    SIGTERM ends the manager, not the tasks: they go on, and the next manager adopts them.
    """
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.manager.settings import load_settings

    settings, warnings = load_settings(flags, config=config)
    store = click.get_current_context().find_root().obj = JobStore(settings.base_path)
    if detach:
        _leave_task()
        for warning in warnings:  # the manager says them too, where few look
            click.echo(f"air-executor: {warning}", err=True)
    if replace:
        _stop(store)
    if detach and (pid := _detach(store)):
        click.echo(f"manager {pid} runs the jobs of {store.base_path}")
    else:
        _run_manager(store, settings, warnings)


def _run_manager(store: JobStore, settings: Settings, warnings: list[str]) -> None:
    from airflow_provider_air_executor.engines.children import Children
    from airflow_provider_air_executor.engines.local.engine import LocalEngine
    from airflow_provider_air_executor.engines.registry import Engines
    from airflow_provider_air_executor.manager.lock import ManagerLock
    from airflow_provider_air_executor.manager.loop import Loop
    from airflow_provider_air_executor.manager.manager import Manager
    from airflow_provider_air_executor.system.environment import as_given
    from airflow_provider_air_executor.system.processes import can_inspect

    _set_up_logging(settings)
    if not can_inspect():
        raise exceptions.ManagerError(
            "/proc is not mounted here: without it, a task that runs looks like one that has ended"
        )
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent may have blocked SIGTERM
    with ManagerLock(store) as lock:
        for warning in warnings:
            logging.getLogger("air_executor.manager").warning(warning)
        children, environment = Children(), as_given(os.environ)
        local = LocalEngine(store, environment, children, preload=settings.preload)
        Loop(Manager(store, settings, Engines(store, settings, local, environment, children)), lock).run()


def _leave_task() -> None:
    """Begin anew without what marks a process as one of a task, at whose end it would be ended."""
    from airflow_provider_air_executor.system.environment import TASK_VARIABLES, as_given

    if not os.environ.keys().isdisjoint(TASK_VARIABLES):
        environment = {key: value for key, value in as_given(os.environ).items() if key not in TASK_VARIABLES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - no shell


def _detach(store: JobStore) -> int:
    """Go on in a process that outlives this one; it has imported already what a manager needs.

    :return: 0 in that process, and its number here, as soon as it holds the base path.
    """
    if manager_status.is_running(store):
        raise exceptions.ManagerRunningError(store.base_path, manager_status.pid(store))
    store.create_directories()
    if store.manager_log_path.exists() and store.manager_log_path.stat().st_size > _LOG_BYTES:
        store.manager_log_path.replace(store.manager_log_path.with_suffix(".log.1"))
    log = os.open(store.manager_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _leave_terminal(log)
        return 0
    os.close(log)
    deadline = time.monotonic() + _DETACH_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if os.waitstatus_to_exitcode(status) == exceptions.ManagerRunningError.exit_code:  # another one was faster
                raise exceptions.ManagerRunningError(store.base_path, manager_status.pid(store))
            raise exceptions.ManagerError(f"the manager could not start; see {store.manager_log_path}")
        if manager_status.pid(store) == pid:
            return pid
        time.sleep(0.02)
    raise exceptions.ManagerError(
        f"the manager did not start within {_DETACH_SECONDS:g} s; see {store.manager_log_path}"
    )


def _leave_terminal(log: int) -> None:
    """Detach from the terminal of the parent process; output goes to a file."""
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2:
            with contextlib.suppress(OSError):  # the one of the list itself is closed by now
                os.close(descriptor)


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


def _set_up_logging(settings: Settings) -> None:
    handler = logging.StreamHandler()
    style = "%(asctime)s %(levelname)s %(message)s"
    formatter = (_JsonFormatter if settings.log_format == "json" else logging.Formatter)(style, "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.raiseExceptions = False  # a full disk must not end the manager


@main.command()
@_base_path
def stop(base_path: str | None) -> None:
    """End the manager of a base path; tasks that run go on."""
    store = _store(base_path)
    pid = _stop(store)
    if pid is None:
        click.echo(f"no manager is running on {store.base_path}")
    else:
        click.echo(f"manager {pid} has ended")


def _stop(store: JobStore) -> int | None:
    """End the manager of a base path; its process id, if there was one."""
    pid = _number(store)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    # It removes its number before it releases the lock.
    while manager_status.is_running(store) and manager_status.pid(store) in (pid, None):
        if time.monotonic() > deadline:
            raise exceptions.ManagerError(f"manager {pid} did not end within {_STOP_SECONDS:g} s")
        time.sleep(0.02)
    return pid


def _number(store: JobStore) -> int | None:
    """The process id of the manager that runs, if one does.

    A manager publishes its number a moment after it has acquired the lock. Until then there is none, or that of an
    earlier manager that was killed.
    """
    deadline = time.monotonic() + _NUMBER_SECONDS
    while manager_status.is_running(store):
        pid = manager_status.pid(store)
        if pid is not None and _is_manager(pid):
            return pid
        if time.monotonic() > deadline:
            if pid is None:
                raise exceptions.ManagerError(f"the manager of {store.base_path} has not published its process id")
            raise exceptions.ManagerError(f"manager {pid} of {store.base_path} runs in another container; end it there")
        time.sleep(0.02)
    return None


def _is_manager(pid: int) -> bool:
    """Whether a process of this machine, or container, is a manager: the number may stem from another one."""
    try:
        return b"manager" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")  # elsewhere than on Linux there is nothing to ask
    except OSError:
        return True


# -- jobs --------------------------------------------------------------------------------------------------


@main.command()
@_base_path
@click.argument("file", metavar="JOB.JSON", type=click.File("rb"))
@click.option("--name", help="Name of the job, if the file does not give one.")
@click.option("--wait", is_flag=True, help="Wait until it has ended; exit with 1 if it failed.")
@_json
def submit(base_path: str | None, file: Any, name: str | None, wait: bool, as_json: bool) -> None:
    """Submit a job from a file ("-": standard input).

    The file holds {"name": ..., "tasks": [{"command": "echo", "args": ["hi"]}, ...]}, and what else a job may say:
    max_parallel_tasks (default: all that are independent), timeout, priority, labels, outlets, runner.
    """
    store = _store(base_path, must_exist=False)
    described = _read_job(file, name)
    manager_status.check_locks(store)
    job = store.submit(**described)
    if wait:
        _say_if_none_runs(store)
        job = _wait(store, job.name)
    if as_json:
        _print_json(_job_as_json(store, job))
    else:
        click.echo(f"{job.name}: {job.state}" + (f": {job.error}" if job.error else ""))
        if not wait:
            _say_if_none_runs(store)
    _exit_with(job)


def _say_if_none_runs(store: JobStore) -> None:
    """Warn a user who waits for a job that no manager runs it."""
    if not manager_status.is_running(store):
        click.echo(f"no manager is running; start it: air-executor manager --base-path {store.base_path}", err=True)


def _read_job(file: Any, name: str | None) -> dict[str, Any]:
    from airflow_provider_air_executor.jobs.spec import FIELDS

    try:
        content = json.load(file)
    except ValueError as error:
        raise exceptions.InvalidJobError(f"{file.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise exceptions.InvalidJobError(f"{file.name}: must be an object with name and tasks")
    if name is not None:
        content["name"] = name
    allowed = {"name", "tasks", *FIELDS}
    for key in content.keys() - allowed:
        raise exceptions.InvalidJobError(f"{key}: there is no such field; a job has {', '.join(sorted(allowed))}")
    for key in ("name", "tasks"):
        if key not in content:
            raise exceptions.InvalidJobError(f"{key}: the field is missing in {file.name}")
    return content


def _wait(store: JobStore, name: str) -> Job:
    report_problem = _problem_reporter(store, name)
    while not (job := store.get_job(name)).state.is_terminal:
        report_problem()
        time.sleep(_FOLLOW_SECONDS)
    return job


def _problem_reporter(store: JobStore, name: str) -> Callable[[], None]:
    """A function that prints what the manager cannot do with a job now, each problem once."""
    reported: str | None = None

    def report() -> None:
        nonlocal reported
        problem = manager_status.problems(store).get(name)
        if problem not in (None, reported):
            click.echo(f"air-executor: job {name!r} {problem}", err=True)
        reported = problem

    return report


def _exit_with(job: Job) -> None:
    if job.state == "failed":
        click.get_current_context().exit(1)


def _job_as_json(store: JobStore, job: Job, *, with_tasks: bool = False) -> dict[str, Any]:
    record = job.model_dump(mode="json")
    problem = manager_status.problems(store).get(job.name)
    if problem is not None:
        record["problem"] = problem
    if with_tasks:
        from airflow_provider_air_executor.jobs.summary import why_blocked

        record["held_up"] = why_blocked(store, job, store.list_jobs())
        record["tasks"] = [task.model_dump(mode="json") for task in store.get_tasks(job.name)]
    return record


@main.command()
@_base_path
@click.argument("job_name", metavar="[JOB]", required=False)
@click.option("--watch", is_flag=True, help="Go on until it has ended (one job), or until Ctrl-C.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Jobs shown, newest first.")
@_json
def status(base_path: str | None, job_name: str | None, watch: bool, limit: int, as_json: bool) -> None:
    """Show all jobs, or one job with its tasks.

    With --watch and a job, the exit code is 1 if the job fails.
    """
    store = _store(base_path)
    if as_json:
        _status_as_json(store, job_name, watch)
        return
    from airflow_provider_air_executor.manager import display

    if watch:
        job = display.watch(store, job_name, limit)
        if job is not None:
            _exit_with(job)
    else:
        display.show(store, job_name, limit)


def _status_as_json(store: JobStore, job_name: str | None, watch: bool) -> None:
    if job_name is None:
        found: dict[str, Any] = {"manager_pid": None}
        try:
            found["manager_pid"] = manager_status.pid(store)
            if found["manager_pid"] and (why_old := manager_status.why_not_replaced(store)):
                found["problem"] = f"manager {found['manager_pid']} is {why_old}"
        except (exceptions.AirExecutorError, OSError) as error:
            found["problem"] = f"it is not known whether a manager runs: {error}"
        _print_json({**found, "jobs": [_job_as_json(store, job) for job in store.list_jobs()]})
        return
    job = _wait(store, job_name) if watch else store.get_job(job_name)
    _print_json(_job_as_json(store, job, with_tasks=True))
    if watch:
        _exit_with(job)


@main.command()
@_base_path
@click.argument("job_name", metavar="JOB")
@click.argument("task_id", metavar="[TASK]", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
def logs(base_path: str | None, job_name: str, task_id: str | None, follow: bool) -> None:
    """Print what the tasks of a job have printed, each line with the task's id before it.

    Of a line that is written over, as progress bars do, its last state; with --follow, now and then. With a task: its
    log as it is, byte for byte.
    """
    store = _store(base_path)
    ids = [task.id for task in store.get_tasks(job_name)]
    if task_id is not None and task_id not in ids:
        raise exceptions.InvalidJobError(f"job {job_name!r} has no task {task_id!r}; its tasks: {', '.join(ids)}")
    made: Callable[[str], _LogPrinter] = partial(_LogPrinter, store, job_name, prefix=task_id is None)
    printers = {task: made(task) for task in ids if task_id in (None, task)}
    report_problem = _problem_reporter(store, job_name)
    while True:
        over = not follow or store.get_job(job_name).state.is_terminal
        if follow and task_id is None:
            for task in store.get_tasks(job_name):
                if task.id not in printers:
                    printers[task.id] = made(task.id)
        for printer in printers.values():
            printer.print_new(final=over)
        sys.stdout.buffer.flush()
        if follow:
            report_problem()
        if over or (task_id is not None and _has_ended(store, job_name, task_id)):
            break
        time.sleep(_FOLLOW_SECONDS)
    for printer in printers.values():
        printer.print_new(final=True)


def _has_ended(store: JobStore, job_name: str, task_id: str) -> bool:
    return any(task.id == task_id and task.status.is_terminal for task in store.get_tasks(job_name))


class _LogPrinter:
    """Prints what has been added to a log since the last time, line by line if each gets a prefix."""

    def __init__(self, store: JobStore, job_name: str, task_id: str, *, prefix: bool) -> None:
        from airflow_provider_air_executor.jobs.logs import TaskLog
        from airflow_provider_air_executor.jobs.stream import PASS_BYTES, Lines

        self._log = TaskLog(store.paths(job_name), task_id)
        self._read = partial(self._log.read, limit=PASS_BYTES)
        self._task_id = task_id
        self._lines = Lines() if prefix else None
        self._offset = 0

    def print_new(self, *, final: bool) -> None:
        self._begin_anew_if_truncated()
        while (chunk := self._read(offset=self._offset)).data:
            if self._lines is None:
                sys.stdout.buffer.write(chunk.data)
                self._offset = chunk.next_offset
                continue
            piece = self._lines.find(chunk.data, is_over=final)
            if piece.end > piece.begin:
                for line in self._lines.cut(chunk.data[piece.begin : piece.end], piece):
                    sys.stdout.buffer.write(b"%s | %s\n" % (self._task_id.encode(), line))
            self._offset += piece.next
            if not piece.next:
                return

    def _begin_anew_if_truncated(self) -> None:
        from airflow_provider_air_executor.jobs.stream import TRUNCATED

        if self._log.size() < self._offset:
            click.echo(f"air-executor: {self._task_id}: {TRUNCATED}", err=True)
            self._offset = 0


@main.command()
@_base_path
@click.argument("job_name", metavar="JOB")
def cancel(base_path: str | None, job_name: str) -> None:
    """Cancel a job: its running tasks are killed, and no other task starts."""
    from airflow_provider_air_executor.jobs import inbox

    store = _store(base_path)
    if inbox.cancel(store, job_name):
        click.echo(f"{job_name}: cancellation requested")
    else:
        click.echo(f"{job_name}: has ended already ({store.get_job(job_name).state})")


@main.command("add-task", context_settings={"allow_interspersed_args": False})
@_base_path
@click.option("--job", "job_name", envvar="AIR_EXECUTOR_JOB", required=True, help="The job; default: the task's own.")
@click.option("--id", "task_id", default="", help="Id of the new task; one is made up otherwise.")
@click.option("--depends-on", multiple=True, metavar="ID", help="A task that must have completed; may be repeated.")
@click.option("--bash", metavar="LINE", help="A line of bash, in place of a command.")
@click.option("--timeout", type=float, metavar="SECONDS", help="After which it is killed.")
@click.option("--retries", type=int, default=0, help="How many more attempts are made after a failed one.")
@click.argument("command", nargs=-1)
def add_task(
    base_path: str | None,
    job_name: str,
    task_id: str,
    depends_on: tuple[str, ...],
    bash: str | None,
    timeout: float | None,
    retries: int,
    command: tuple[str, ...],
) -> None:
    """Add a task to a job that has not ended: air-executor add-task --depends-on a -- COMMAND ARG...

    A task can add tasks to its own job, and to no other unless it is named. Prints the id of the new task.
    """
    from airflow_provider_air_executor.jobs import inbox

    if (bash is None) == (not command):
        raise click.UsageError("give either a command, or --bash")
    what = {"bash": bash} if bash is not None else {"command": command[0], "args": command[1:]}
    given = {"id": task_id, "dependencies": depends_on, "timeout": timeout, "retries": retries}
    (added,) = inbox.add_tasks(_store(base_path), job_name, [{**what, **given}])
    click.echo(added)


@main.command()
@_base_path
@click.argument("job_name", metavar="JOB")
def retry(base_path: str | None, job_name: str) -> None:
    """Run again what failed of a job, and what depends on it."""
    from airflow_provider_air_executor.jobs import inbox

    inbox.retry(_store(base_path), job_name)
    click.echo(f"{job_name}: retry requested")


class _Duration(click.ParamType[timedelta]):
    name = "duration"
    _units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a number with a unit: s, m, h, d or w (7d, 12h)", param, ctx)
        return timedelta(seconds=float(match[1]) * self._units[match[2]])


@main.command()
@_base_path
@click.option("--older-than", type=_Duration(), required=True, metavar="AGE", help="7d, 12h, 30m, 45s, 2w.")
@_json
def prune(base_path: str | None, older_than: timedelta, as_json: bool) -> None:
    """Remove the jobs that ended longer ago than AGE, with their logs.

    The exit code is 1 as long as some files of a job that was to be removed are still there.
    """
    removed, left = _store(base_path).prune(older_than)
    if as_json:
        _print_json({"pruned": removed, **({"left": {str(error.path): str(error) for error in left}} if left else {})})
    else:
        click.echo(f"{len(removed)} job{'' if len(removed) == 1 else 's'} removed")
    for error in left:
        click.echo(f"air-executor: {error}", err=True)
    if left:
        click.get_current_context().exit(1)


if __name__ == "__main__":
    main()
