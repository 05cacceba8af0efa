"""Warm tasks, and managers that import something else ahead of them every moment: for tests of what holds all the same.

A test with :data:`in_both_kinds` runs once as it is, and once with all tasks that it submits started from generations
of the fork server. What these import is learned as always, but for the last choice: a clock makes it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines.local.learning.learner import Learner
from airflow_provider_air_executor.engines.local.learning.trial import Outcome
from airflow_provider_air_executor.jobs.models import Job, Task
from airflow_provider_air_executor.jobs.store import JobStore
from tests.engines.learning.reports import report
from tests.support.managers import Managers

_WARM = pytest.param(
    "warm",
    marks=[
        pytest.mark.engine,
        pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux"),
    ],
)
in_both_kinds = pytest.mark.parametrize("kind_of_tasks", ["processes", _WARM], indirect=True)
only_warm = pytest.mark.parametrize("kind_of_tasks", [_WARM], indirect=True)

SECONDS = 0.3  # after which other modules are wanted
_REFRESH_SECONDS = 2.5  # after which the fork server itself is replaced
_KNOWN, _CHANGING = "bundle/known.py", "bundle/changing.py"  # a file with generations, and one that has none
# A task: it imports something, and is the command that it is given, as far as others can tell. Its process stays.
_BECOMES = """\
import importlib, signal, subprocess, sys
from airflow_provider_air_executor.system import import_report
def renew():
    return True
if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the command hears it too
    for name in ("first", "second"):
        importlib.import_module(name)
    code = subprocess.Popen(sys.argv[2:]).wait()
    import_report.send(sys.argv[1], parse_seconds=0.1, changed=["CHANGED"] if "changing" in sys.argv[1] else [])
    sys.exit(128 - code if code < 0 else code)
"""
_CHANGES = """
import time as _time
from airflow_provider_air_executor.engines.local import freshness, preloading, publication, warm
from airflow_provider_air_executor.engines.local.learning.learner import Learner

def _wanted(self, real=Learner.modules):
    names = real(self)
    return (names, names[:1], (), names[1:])[int(_time.monotonic() / {seconds}) % 4]

def _look_always(self, real=preloading.Preloading.step):
    real(self)
    if self._look_at is None:
        self._look_at = _time.monotonic() + preloading.LOOK_SECONDS

def _note(self, server, real=preloading.Preloading.has_become_ready):
    real(self, server)
    with open({made!r}, "a") as file:
        file.write(f"{{server.pid}} {{'' if server.parent is None else server.parent.pid}}\\n")

def _refresh_often(self, real=warm.ForkServerClient.poll, last=[_time.monotonic()]):
    if _time.monotonic() - last[0] > {refresh}:
        last[0] = _time.monotonic()
        self.refresh()
    return real(self)

Learner.modules = _wanted
preloading.Preloading.step, preloading.Preloading.has_become_ready = _look_always, _note
warm.ForkServerClient.poll = _refresh_often
preloading.FIRST_PAUSE = preloading.PAUSE = preloading.LONGEST_PAUSE = 0.01
preloading.LOOK_SECONDS = {seconds} / 3
"""


class WarmStore(JobStore):
    """A job filesystem where the tasks of submitted jobs start warm, each fourth one from the fork server itself."""

    _count = 0

    def submit(self, name: str, tasks: Iterable[Task | Mapping[str, Any] | str], **more: Any) -> Job:
        """Submit a job as always."""
        return super().submit(name, [self.warm(task) for task in tasks], **more)

    def warm(self, task: Task | Mapping[str, Any] | str) -> dict[str, Any]:
        """A task that does the same and starts warm."""
        assert not isinstance(task, Task)
        found = {"bash": task} if isinstance(task, str) else dict(task)
        self._count += 1
        found["preload_key"] = key = _KNOWN if self._count % 4 else _CHANGING
        if found.get("runner") == "warm":
            return found
        words = ["bash", "-c", found.pop("bash")] if "bash" in found else [found["command"], *found.get("args", ())]
        return {**found, "command": sys.executable, "args": ["-m", "becomes", key, *words], "runner": "warm"}


class ChangingManagers(Managers):
    """Managers that have learned what such tasks import, and make one generation after the other.

    :param directory: for what they need.
    """

    def __init__(self, store: JobStore, directory: Path) -> None:
        super().__init__(store)
        self._written: list[str] = []  # by managers, until they were killed
        self._made = directory / "made"
        self._installed = directory / "site-packages"
        self._own = directory / "own"
        for path in (self._installed, self._own):
            path.mkdir()
        for name in ("first", "second"):
            (self._installed / f"{name}.py").write_text("")
        self.environment["PYTHONPATH"] = f"{self._own}:{self._installed}"
        self._preload = ["auto"]
        self.have_imported("becomes", _BECOMES)

    def have_imported(self, module: str, code: str) -> None:
        """Let the fork server import a module, too."""
        (self._own / f"{module}.py").write_text(code)
        self._preload.append(module)

    def launch(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a manager, without waiting for it."""
        self._learn()
        patch = self.patch
        changes = _CHANGES.format(made=str(self._made), seconds=SECONDS, refresh=_REFRESH_SECONDS)
        self.patch = changes + patch
        try:
            return super().launch("--preload", ",".join(self._preload), *flags, **kwargs)
        finally:
            self.patch = patch

    def _learn(self) -> None:
        """Let the first manager know what is imported; later ones know what that one has left."""
        if (self.store.base_path / "preload.json").exists():
            return
        self.store.create_directories()
        with self._is_installed():
            learner = Learner(self.store.base_path)
            for _ in range(3):
                learner.take(report(_KNOWN, first=["first"], second=["second"]))
                learner.take(report(_CHANGING, changed=("CHANGED",), first=["first"], second=["second"]))
            while trial := learner.next_trial():
                learner.tried(trial, Outcome(0.1, 1 << 20, names=trial.names))
            assert learner.modules() == ("first", "second")
            learner.write(now=True)

    @contextlib.contextmanager
    def _is_installed(self) -> Iterator[None]:
        sys.path.append(str(self._installed))
        try:
            yield
        finally:
            sys.path.remove(str(self._installed))

    def kill(self, process: subprocess.Popen[str]) -> None:
        """``kill -9``."""
        process.kill()
        self._written.append(process.communicate()[1])

    def close(self) -> None:
        """End all managers, and whatever their tasks have left. No learner has failed: it would change nothing more."""
        super().close()
        assert not [text for text in self._written if "Traceback" in text]

    def made(self) -> list[int]:
        """The processes of the generations that have become ready until now."""
        lines = self._made.read_text().splitlines() if os.path.exists(self._made) else []
        return [int(pid) for pid, *parent in map(str.split, lines) if parent]
