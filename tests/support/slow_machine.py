"""Run a command on a machine that has much else to do: ``python -m tests.support.slow_machine make test-fast``.

On each core a process is busy all the time, and another one writes and flushes files. They end with the command, or
with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tests.support.processes import exit_on_sigterm

_PIECE = os.urandom(256 * 1024)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def _be_busy() -> None:
    while True:
        pass


def _flush() -> None:
    with tempfile.TemporaryFile() as file:
        while True:
            file.seek(0)
            file.write(_PIECE)
            file.flush()
            os.fsync(file.fileno())


def _endless(what: str) -> None:
    """What a process of the load does; it ends with the one that has started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    {"busy": _be_busy, "flush": _flush}[what]()


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Keep all cores and the disk busy."""
    kinds = [*["busy"] * (os.cpu_count() or 1), "flush"]
    processes = [subprocess.Popen([sys.executable, "-m", __spec__.name, "--load", kind]) for kind in kinds]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    """Run the command.

    :return: its exit code.
    """
    if sys.argv[1:2] == ["--load"]:
        _endless(sys.argv[2])
    exit_on_sigterm()
    with load():
        return subprocess.run(sys.argv[1:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
