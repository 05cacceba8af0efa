"""Which process forks the next task of a supervisor: one that has executed its DAG file, if that may be shared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from airflow_provider_air_executor import zygote
from airflow_provider_air_executor.dag_files import DagFile
from airflow_provider_air_executor.system import process_family
from airflow_provider_air_executor.system.environment import RUN_VARIABLE
from airflow_provider_air_executor.zygote import CannotAskError, Zygote

_MOST = 2  # DAG files for which there is a process at a time
# What executing a DAG file may take for a task to wait for it, and how long that may last on a busy machine. Otherwise
# the present task executes it itself.
_SHORT_CPU_SECONDS = 2.0
_WAIT_SECONDS = 30.0

_Setting = tuple[str, dict[str, str]]


class TaskForkers:
    """The zygotes of this process: one that is as it was before any task, and those that have executed a DAG file."""

    def __init__(self) -> None:
        self._plain: Zygote | None = None
        self._executed: dict[str, tuple[Zygote, _Setting]] = {}  # the one that was used last comes last
        self._dag_file: DagFile | None = None  # of the task that comes next
        self._last = ""  # the DAG file of the last task that could be executed ahead
        self._in_a_row = 0  # tasks of it

    def begin(self) -> None:
        """Prepare for a task; it executes its DAG file itself unless :meth:`share` is called."""
        self._dag_file = None
        self._prepare_plain()

    def share(self, dag_file: DagFile, *, is_watched: bool, after: int = 0) -> None:
        """Have the DAG file of the next task executed ahead of it, and of later ones.

        :param is_watched: whether it is still to be found out, by watching, that this may be done.
        :param after: how many tasks of the file come before, one after the other, and execute it themselves.
        """
        self._in_a_row = self._in_a_row + 1 if dag_file.key == self._last else 1
        self._last = dag_file.key
        if self._in_a_row <= after and dag_file.key not in self._executed:
            return
        plain = self._prepare_plain()
        if plain is not None and is_watched:
            plain.watch(dag_file)
        elif plain is not None:
            self._dag_file = dag_file

    def _prepare_plain(self) -> Zygote | None:
        """The zygote that has executed nothing; None: this process does not stay for more than one task."""
        if not process_family.may_stay or not zygote.is_possible():
            return None
        if self._plain is None or not self._plain.is_alive():
            self._plain = Zygote.start(process_family.begin_anew)
        return self._plain

    def __call__(self) -> Iterator[Zygote]:
        """The zygotes that can fork the next task, the best first."""
        plain, dag_file = self._prepare_plain(), self._dag_file
        if plain is None:
            return
        if dag_file is not None:
            with contextlib.suppress(CannotAskError):
                executed = self._executed_by(plain, dag_file)
                if executed is not None:
                    yield executed
                    self._drop(dag_file.key)  # it could not
        yield plain

    def _executed_by(self, plain: Zygote, dag_file: DagFile) -> Zygote | None:
        """The zygote that has executed a DAG file; None: it is not ready.

        :raises CannotAskError: if there can be none.
        """
        setting, seconds = _setting(), 0.0
        if dag_file.key in self._executed:
            found, its_setting = self._executed[dag_file.key]
            if its_setting != setting or found.has_ended():
                self._drop(dag_file.key)
        if dag_file.key in self._executed:
            executed = self._executed.pop(dag_file.key)[0]
        else:
            executed, seconds = plain.beget(dag_file), _WAIT_SECONDS * (dag_file.cpu_seconds < _SHORT_CPU_SECONDS)
        self._executed[dag_file.key] = executed, setting
        while len(self._executed) > _MOST:
            self._drop(next(iter(self._executed)))
        try:
            return executed if executed.is_ready(seconds) else None
        except CannotAskError:
            self._drop(dag_file.key)
            raise

    def _drop(self, key: str) -> None:
        found = self._executed.pop(key, None)
        if found is not None:
            found[0].close()


def _setting() -> _Setting:
    """In what a DAG file is executed: where something of that differs, it has to be executed anew."""
    return os.getcwd(), {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
