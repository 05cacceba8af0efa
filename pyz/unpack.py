"""Unpacks air-executor.pyz, once for each user, content and kind of Python, and runs the command line from there.

Compiled modules cannot be imported from an archive, and a directory of files is imported in half the time: Python keeps
there what it has compiled. The directory gets its name when all is in it, so that any number of processes may begin at
once, and one that is killed leaves nothing that another one would use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes longer to import than all that is needed
    from typing import NoReturn

CONTENT = "content.zip"  # in the archive, so that Python reads a directory of few files at each start
KEY = "key.txt"  # in the archive; of the content
_NEW = ".new-"
_RARE = r"/pygments/(lexers|styles|formatters)/"  # a quarter of all modules, of which nothing is needed
_ANOTHER = "AIR_EXECUTOR_CACHE names another directory"
_SUFFIX = EXTENSION_SUFFIXES[0]  # of modules that are compiled for this Python, machine and C library


def run() -> None:
    """Run the command line."""
    archive = __loader__.archive  # type: ignore[name-defined]
    sys.path[:] = [unpacked(archive), *(path for path in sys.path if path != archive)]
    from airflow_provider_air_executor.manager.cli import main

    main(prog_name="air-executor")


def _fail(why: str) -> NoReturn:
    sys.exit(f"air-executor: {why}")


def unpacked(archive: str) -> str:
    """The directory that holds the content of an archive for this Python; it is made if there is none."""
    key = __loader__.get_data(os.path.join(archive, KEY)).decode()  # type: ignore[name-defined]
    cache = _cache()
    tree = os.path.join(cache, f"{key}{_SUFFIX.removesuffix('.so')}")
    if not os.path.isdir(tree):
        try:
            with _alone(cache):
                if not os.path.isdir(tree):
                    _unpack(archive, cache, tree)
        except OSError as error:
            _fail(f"it cannot be unpacked in {cache}: {error}; {_ANOTHER}")
    return tree


def _cache() -> str:
    """The directory of this user for what is unpacked."""
    given = os.environ.get("AIR_EXECUTOR_CACHE")
    above = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cache = os.path.abspath(given or os.path.join(above, "air-executor"))
    try:
        os.makedirs(cache, 0o700, exist_ok=True)
        found = os.stat(cache)
        if found.st_uid != os.geteuid():
            _fail(f"{cache} belongs to another user; {_ANOTHER}")
        if found.st_mode & 0o077:
            os.chmod(cache, 0o700)
    except OSError as error:
        _fail(f"there is no directory to unpack it in: {error}; {_ANOTHER}")
    return cache


@contextlib.contextmanager
def _alone(cache: str) -> Iterator[None]:
    """Let one process after the other unpack. Where there are no locks they all do, which costs no more than time."""
    import fcntl
    import shutil

    with open(os.path.join(cache, "lock"), "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        for name in os.listdir(cache):  # of those that were killed
            if name.startswith(_NEW):
                shutil.rmtree(os.path.join(cache, name), ignore_errors=True)
        yield


def _unpack(archive: str, cache: str, tree: str) -> None:
    import compileall
    import re
    import shutil
    import tempfile
    from zipfile import ZipFile

    new = tempfile.mkdtemp(prefix=_NEW, dir=cache)
    try:
        with ZipFile(archive) as outer, outer.open(CONTENT) as inner, ZipFile(inner) as content:
            content.extractall(new, members=_for_this_python(content.namelist()))
        # Here and now, since who sets PYTHONDONTWRITEBYTECODE would have them compiled at each start.
        compileall.compile_dir(new, quiet=2, stripdir=new, prependdir=tree, rx=re.compile(_RARE))
        _write_through(new)
        os.rename(new, tree)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if not (isinstance(error, OSError) and os.path.isdir(tree)):  # otherwise another process was faster
            raise


def _for_this_python(names: list[str]) -> list[str]:
    """Of the files of the archive, those that this Python can use."""
    compiled = {name for name in names if name.endswith(".so") and ".cpython-" in name}
    fitting = {name for name in compiled if name.endswith(_SUFFIX)}
    if not fitting:
        known = sorted({name.partition(".")[2].removesuffix(".so") for name in compiled})
        _fail(f"{sys.executable} needs modules for {_SUFFIX[1:-3]}; there are those for {', '.join(known)}")
    return [name for name in names if name not in compiled - fitting]


def _write_through(directory: str) -> None:
    """Have all files on the disk, so that no power cut leaves a directory that is whole but for its content."""
    for path, _, names in os.walk(directory):
        for name in [*names, "."]:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not know it for directories
                    raise
            finally:
                os.close(descriptor)
