"""DAG files that are executed ahead of their tasks, in a process from which these are forked (see :mod:`.zygote`).

A task executes its whole DAG file to have its operator. Where the file gives the same in each task, one process does
that for several of them. Whether it does is found out first: the file is executed once under watch, see
:mod:`.parse_watch`. What is then executed ahead holds as long as no file has changed that it depends on, and not longer
than Airflow's DAG processor goes by what it has read.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor import parse_watch
from airflow_provider_air_executor.system import import_report
from airflow_provider_air_executor.system.stamps import Stamped, are_same

_FILLING = "Filling up the DagBag from "  # which Airflow logs each time
# For two, Airflow leaves handlers of its own: it limits the time for a DAG file, and notices that it has crashed.
_SIGNALS = signal.valid_signals() - {signal.SIGALRM, signal.SIGSEGV}
_LOG_BYTES = 100_000  # that are read of what was logged meanwhile


class _NotSharedError(Exception):
    """What a DAG file gives must not be shared."""


class DagFile(NamedTuple):
    """A DAG file, as a process is to execute it.

    :param key: under which it is known to the manager.
    :param path: within the bundle.
    :param files: on which it depends; none if that is not known yet.
    :param seconds: how long what it gives holds.
    :param cpu_seconds: that executing it takes.
    """

    key: str
    bundle: str
    version: str | None
    path: str
    files: Stamped
    seconds: float
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class _Parsing:
    """How Airflow executes a DAG file for a task."""

    arguments: dict[str, Any]

    @classmethod
    def of(cls, dag_file: DagFile) -> _Parsing:
        """How a DAG file is executed.

        :raises _NotSharedError: if a task may find another file than this one.
        """
        from airflow.dag_processing.bundles.local import LocalDagBundle
        from airflow.dag_processing.bundles.manager import DagBundlesManager

        bundle = DagBundlesManager().get_bundle(name=dag_file.bundle, version=dag_file.version)
        if dag_file.version is None and not isinstance(bundle, LocalDagBundle):
            raise _NotSharedError("each task updates its bundle, which has no versions")
        bundle.initialize()
        return cls(
            {
                "dag_folder": os.fspath(Path(bundle.path, dag_file.path)),
                "safe_mode": False,
                "load_op_links": False,
                "bundle_path": bundle.path,
                "bundle_name": dag_file.bundle,
            }
        )

    @property
    def bundle_path(self) -> str:
        """The directory of its bundle."""
        return str(self.arguments["bundle_path"])

    def __call__(self) -> Any:
        from airflow.dag_processing.dagbag import BundleDagBag

        return BundleDagBag(**self.arguments)


class ExecutedFile:
    """A DAG file that this process has executed.

    :param bag: what it gave.
    :param seconds: of CPU that it took.
    """

    def __init__(self, dag_file: DagFile, parsing: _Parsing, bag: Any, seconds: float) -> None:
        self._dag_file, self._parsing, self._bag = dag_file, parsing, bag
        self._seconds = seconds
        self._at = time.monotonic()

    def is_stale(self) -> bool:
        """Whether it is to be executed anew; if a file has changed, the manager is told."""
        if time.monotonic() - self._at > self._dag_file.seconds:
            return True
        if are_same(self._dag_file.files):
            return False
        import_report.send_watched(self._dag_file.key, "", {})
        return True

    def offer(self) -> None:
        """Let the task that this process becomes find what the file gave, once: in place of executing it."""
        import airflow.dag_processing.dagbag

        dagbag: Any = airflow.dag_processing.dagbag
        execute, registry = dagbag.BundleDagBag, dagbag.get_importer_registry

        def executed(*args: Any, **kwargs: Any) -> Any:
            dagbag.BundleDagBag = execute
            if args or kwargs != self._parsing.arguments:
                return execute(*args, **kwargs)
            import_report.executed_ahead(self._seconds)
            dagbag.get_importer_registry = _NoImporters
            try:
                execute(**kwargs)  # which logs what it always does, and finds no file
            finally:
                dagbag.get_importer_registry = registry
            return self._bag

        dagbag.BundleDagBag = executed


class _NoImporters:
    """Stands for what Airflow has to import DAG files with."""

    def list_dag_files(self, *args: Any, **kwargs: Any) -> list[str]:
        """No file."""
        return []


def watch(dag_file: DagFile) -> None:
    """Execute a DAG file under watch, and report to the manager what was seen. This process ends after it."""
    _block_database()
    try:
        parsing = _Parsing.of(dag_file)
    except _NotSharedError as error:
        import_report.send_watched(dag_file.key, str(error), {})
        return
    found = parse_watch.watch(parsing, parsing.bundle_path)
    import_report.send_watched(dag_file.key, found.why_not, found.files)


def execute(dag_file: DagFile, log_records: int) -> ExecutedFile | None:
    """Execute a DAG file in this process, for the tasks that will be forked from it.

    :param log_records: the descriptor to which log records are written.
    :return: None: no task may find it executed after all. The manager knows why.
    """
    why_not, executed = "", None
    if are_same(dag_file.files):
        try:
            why_not, executed = _execute(dag_file, log_records)
        except BaseException as error:  # noqa: BLE001 - whatever a DAG file raises
            why_not = f"executing it has failed: {type(error).__name__}"
    if executed is None or why_not or not are_same(dag_file.files):
        import_report.send_watched(dag_file.key, why_not, dag_file.files if why_not else {})
        return None
    gc.freeze()
    return executed


def _execute(dag_file: DagFile, log_records: int) -> tuple[str, ExecutedFile]:
    _block_database()
    parsing = _Parsing.of(dag_file)
    modules = len(sys.modules)
    with _written(log_records) as written:
        before, began = _traits(), time.process_time()
        bag = parsing()
        seconds, after = time.process_time() - began, _traits()
    why_not = next((f"it changes {what}" for what in before if before[what] != after[what]), "")
    if written:
        why_not = "it prints, or logs"
    elif bag.import_errors or bag.captured_warnings:
        why_not = "it cannot be imported without errors or warnings"
    elif unknown := set(_own_files(modules, parsing)) - dag_file.files.keys():
        why_not = f"it imports {os.path.basename(min(unknown))}, which it did not before"
    return why_not, ExecutedFile(dag_file, parsing, bag, seconds)


def _block_database() -> None:
    """Let nothing here use the database of Airflow, as in tasks."""
    from airflow.sdk.execution_time import supervisor

    block = getattr(supervisor, "block_orm_access", None)
    if block is not None:
        block()


def _traits() -> dict[str, object]:
    """What tasks would miss, or share, if a DAG file changed it ahead of them."""
    return {
        "threads": (len(os.listdir("/proc/self/task")), threading.active_count()),
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "handlers of signals": [signal.getsignal(number) for number in sorted(_SIGNALS)],
        "what is done at the end": atexit._ncallbacks(),  # noqa: SLF001
        "who keeps the standard output": [sys.getrefcount(stream) for stream in (sys.stdout, sys.stderr)],
        "the standard output": (id(sys.stdout), id(sys.stderr)),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "hooks": (sys.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile(), threading.excepthook),
    }


@contextlib.contextmanager
def _written(log_records: int) -> Iterator[list[str]]:
    """What is written meanwhile to standard output, standard error and log records, but for what Airflow says."""
    found: list[str] = []
    file = os.memfd_create("written")
    descriptors = (1, 2, log_records)
    kept = [os.dup(descriptor) for descriptor in descriptors]
    for descriptor in descriptors:
        os.dup2(file, descriptor, inheritable=False)
    try:
        yield found
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        found += filter(_is_of_file, os.pread(file, _LOG_BYTES, 0).decode(errors="replace").splitlines())
    finally:
        for descriptor, before in zip(descriptors, kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(file)


def _is_of_file(line: str) -> bool:
    """Whether something that was written is not what Airflow says with each DAG file."""
    with contextlib.suppress(ValueError, AttributeError):
        return not str(json.loads(line).get("event", "")).startswith(_FILLING)
    return True


def _own_files(count: int, parsing: _Parsing) -> Iterator[str]:
    """The files of the modules that are not of an installed package.

    :param count: how many modules there were before.
    """
    owners = parse_watch.Owners(parsing.bundle_path)
    for name in list(sys.modules)[count:]:
        path = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(path, str) and owners.has_user(path):
            yield path
