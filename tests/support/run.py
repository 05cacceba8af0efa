"""One run of the tests: a directory for all its files, and a janitor that leaves nothing of it, however it ends.

A plugin of pytest; benchmarks use it too. All processes of the run are known by the directory, wherever they have moved
to: it is in their environment, or they have a file in it open. The janitor is a process of its own, so that it outlives
a run that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.processes import command_line, descendants, has_terminal, is_gone, kill, pids, with_environment

_NAME = "TESTS_OF_AIR_EXECUTOR"  # holds the run's directory in the environment of all its processes
_PATIENCE = 10  # seconds until what is asked to end is killed
_MNT_DETACH = 2  # umount(2)


def directory() -> Path | None:
    """The directory of the run that this process belongs to."""
    found = os.environ.get(_NAME)
    return Path(found) if found else None


@contextlib.contextmanager
def only_one(name: str) -> Iterator[Path]:
    """A place for what is made once in a run and shared by its workers, which enter one after the other.

    Outside a run it is a directory that is removed in the end.
    """
    import fcntl

    run = directory()
    if run is None:
        with tempfile.TemporaryDirectory(prefix="air-executor-") as alone:
            yield Path(alone) / name
        return
    shared = run / "shared"
    shared.mkdir(exist_ok=True, mode=0o711)
    shared.chmod(0o711)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared / name


class Run:
    """A run that begins now. Its janitor ends it when this process does, however that happens.

    Temporary files of this process, and of those that it starts, are in :attr:`directory` from now on.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="air-executor-"))
        self.directory.chmod(0o711)  # the database server is not root
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.directory)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.environ[_NAME] = os.environ["TMPDIR"] = str(self.directory)
        tempfile.tempdir = None  # it is determined anew

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until nothing is left of it, and say which processes there were."""
        said, _ = self._janitor.communicate()
        print(said, end="")


# -- in pytest ---------------------------------------------------------------------------------------------------

_RUN = pytest.StashKey[Run]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin a run. Workers of pytest-xdist belong to that of their controller."""
    if hasattr(config, "workerinput"):
        return
    run = config.stash[_RUN] = Run()
    gc.set_threshold(100_000, 50, 100)  # as in_tests.pth does in the processes of the run
    if config.option.basetemp is None:
        config.option.basetemp = run.directory / "pytest"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run, and say which processes its tests have left."""
    run = config.stash.get(_RUN, None)
    if run is not None:
        run.__exit__(None, None, None)


# -- the janitor -------------------------------------------------------------------------------------------------


def clean_up(run: Path) -> list[str]:
    """End all processes of a run, and remove its files, mounts and control groups.

    :return: a line for each process that was there.
    """
    said = [f"process {pid}: {' '.join(command_line(pid))[:200]}" for pid in _processes_of(run)]
    begun = time.monotonic()
    for pid in _processes_of(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while (found := _processes_of(run)) and time.monotonic() < begun + 6 * _PATIENCE:
        if time.monotonic() > begun + _PATIENCE:
            kill(found)
        time.sleep(0.1)
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        place = line.split(" ")[1].encode().decode("unicode_escape")
        if place.startswith(f"{run}/"):
            ctypes.CDLL(None).umount2(os.fsencode(place), _MNT_DETACH)
    remove_control_groups(f"{run.name}-*")
    shutil.rmtree(run, ignore_errors=True)
    return said


def _processes_of(run: Path) -> set[int]:
    # A process that gives itself a title writes over its environment, as Airflow's do. A shell in which somebody looks
    # at the files is none of ours.
    hidden = (pid for pid in pids() if not has_terminal(pid) and _has_a_file_in(run, pid))
    roots = {*with_environment(f"{_NAME}={run}"), *hidden}
    return {pid for pid in roots | descendants(roots) if not is_gone(pid)}


def _has_a_file_in(folder: Path, pid: int) -> bool:
    """Whether a process has a file below a folder open, or works there."""
    try:
        links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd"))]
    except OSError:
        return False
    for link in links:
        with contextlib.suppress(OSError):
            if f"{os.readlink(link)}/".startswith(f"{folder}/"):
                return True
    return False


def remove_control_groups(pattern: str) -> None:
    """Remove the control groups of this name, and those within, as far as no process is in them."""
    for group in Path("/sys/fs/cgroup").glob(f"*/{pattern}"):
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def control_groups_of(directory: Path) -> str:
    """A name for the control groups of what is in a directory of its own; the janitor removes them too."""
    of = os.environ.get(_NAME)
    return f"{Path(of).name if of else 'air-executor-alone'}-{directory.name[-8:]}"


def _wait_for_the_end_of(parent: int) -> None:
    """Until standard input is closed, or who holds it is gone: a process that it has forked may hold it as well."""
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], 1)[0] and not sys.stdin.readline():
            return


def main() -> None:
    """What the janitor does."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _wait_for_the_end_of(parent)
    said = clean_up(Path(sys.argv[1]))
    if said:
        with contextlib.suppress(BrokenPipeError):
            print("What was left:", *said, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
