"""Mounts of a directory at other places, which do not share what the system knows of it: attributes and locks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE, wait_until


@contextlib.contextmanager
def bindfs(source: Path, place: Path, options: str = "") -> Iterator[Path]:
    """A directory as bindfs shows it at another place.

    :param place: a directory that is made.
    :param options: of the mount, by commas.
    :raises OSError: if that cannot be had.
    """
    place.mkdir()
    before = place.stat().st_dev
    command = ["bindfs", "-f", *(["-o", options] if options else []), str(source), str(place)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: place.stat().st_dev != before or process.poll() is not None, what="it is mounted")
            if process.poll() is not None:
                raise OSError(f"bindfs: {process.communicate()[1]}")
            yield place
        finally:
            if process.poll() is None:
                subprocess.run(["umount", "--lazy", str(place)], check=True)
                process.terminate()  # a process with mounts of its own may have a copy of this one
                try:
                    process.wait(PATIENCE)
                finally:
                    process.kill()


@contextlib.contextmanager
def bound(source: Path, place: Path, options: str = "") -> Iterator[Path]:
    """The same, see :func:`bindfs`; the test is skipped where that cannot be had."""
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("bindfs or /dev/fuse is missing")
    with contextlib.ExitStack() as mounted:
        try:
            mounted.enter_context(bindfs(source, place, options))
        except OSError as error:
            pytest.skip(str(error))
        yield place


@contextlib.contextmanager
def object_store(source: Path, place: Path, cache: str = "off") -> Iterator[Path]:
    """A directory as rclone shows an object store; the test is skipped where that cannot be had.

    :param place: a directory that is made.
    :param cache: its ``--vfs-cache-mode``; its default is ``off``.
    """
    if shutil.which("rclone") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("rclone or /dev/fuse is missing")
    place.mkdir()
    own = {**os.environ, "RCLONE_CONFIG": "", "RCLONE_CACHE_DIR": f"{place}-rclone"}
    command = ["rclone", "mount", "--vfs-cache-mode", cache, str(source), str(place)]
    with subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: os.path.ismount(place) or process.poll() is not None, what="it is mounted")
            if process.poll() is not None:
                pytest.skip(f"rclone: {process.communicate()[1]}")
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=False)
            process.terminate()
            process.communicate(timeout=PATIENCE)
