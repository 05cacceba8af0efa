"""Commands as a test runs them: on a terminal, in the background, as an ordinary user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import CLI, Managers
from tests.support.waiting import PATIENCE, wait_until


def on_terminal(
    arguments: list[str], environment: dict[str, str], *, first: str, then: Callable[[], object], last: str
) -> str:
    """What a command shows on a terminal of 80 columns and 12 lines.

    :param first: what it shows before ``then`` is called.
    :param last: what it shows before it is ended.
    """
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*CLI, *arguments], env={**environment, "TERM": "xterm"}, stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    shown = b""
    try:
        for expected, action in ((first, then), (last, partial(process.send_signal, signal.SIGINT))):
            while re.search(expected, shown.decode(errors="replace")) is None:
                shown += os.read(main, 65536)
            action()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(main)
    text = shown.decode(errors="replace").replace("\r", "").replace("\x1b[1A", "\n")
    return re.sub(r"\x1b\[[0-?]*[@-~]", "", text)


class Dialog:
    """A command on a terminal that asks, and is answered."""

    def __init__(self, arguments: list[str], environment: dict[str, str], **more: Any) -> None:
        self._main, side = pty.openpty()
        command = [*CLI, *arguments]
        self.process = subprocess.Popen(command, env=environment, stdin=side, stdout=side, stderr=side, **more)
        os.close(side)
        self.shown = ""

    def expect(self, text: str) -> None:
        """Wait until it shows a text that it has not shown before."""
        while text not in self.shown:
            self.shown += os.read(self._main, 65536).decode(errors="replace").replace("\r", "")
        self.shown = self.shown.partition(text)[2]

    def answer(self, text: str) -> None:
        """Type a line."""
        os.write(self._main, text.encode() + b"\n")

    def interrupt(self) -> None:
        """Ctrl-C, while it waits: a signal just before a call that blocks does not end that."""
        status = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "S", what="it waits")
        self.process.send_signal(signal.SIGINT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)


@contextlib.contextmanager
def going_on(store: JobStore, managers: Managers, path: Path, *arguments: str) -> Iterator[Callable[[], bytes]]:
    """A command that waits for a job, and what it has said so far."""
    job = path.with_suffix(".json")
    job.write_text('{"name": "j", "tasks": ["true"]}')
    command = [*CLI, *arguments, "--base-path", str(store.base_path)]
    with path.open("wb") as file, job.open("rb") as text:
        process = subprocess.Popen(command, env=managers.environment, stdin=text, stdout=file, stderr=file)
    try:
        yield path.read_bytes
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def as_if_not_root(store: JobStore, managers: Managers, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command does if the modes of files count."""
    rights = "-dac_override,-dac_read_search"
    prefix = [] if os.geteuid() else ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
    command = [*prefix, *CLI, *arguments, "--base-path", str(store.base_path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=managers.environment)
