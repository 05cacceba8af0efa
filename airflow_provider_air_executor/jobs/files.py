"""How files of the job filesystem are published and read: whole or not at all, and never through a symlink."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from airflow_provider_air_executor.exceptions import NoLocksError
from airflow_provider_air_executor.jobs.pieces import Pieces, finish

T = TypeVar("T")

_PROCESS_TOKEN = os.urandom(4).hex()
_COUNTER = itertools.count()
_PIECE_BYTES = 1 << 20  # that are read, or flushed to disk, without doing something else in between

# linux/fcntl.h, linux/fs.h
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of a directory, on FUSE, CIFS, and some network file systems
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
# What an operation fails with that may succeed later: the machine is short of something, ...
SHORTAGE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# ... or the file system is full, read-only, or away.
AWAY = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EBUSY, errno.ENOLCK, errno.EINTR,
)  # fmt: skip
TRANSIENT = (*SHORTAGE, *AWAY)
FULL = (errno.ENOSPC, errno.EDQUOT)
# What our own directories fail with if a task has changed their modes.
FORBIDDEN = (errno.EACCES, errno.EPERM)
# What says for sure that there is no regular file of a name.
NOT_A_FILE = (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO)
TOO_LARGE = errno.EFBIG  # what :func:`read` fails with if there is more than the caller wants
ABSENT = (errno.ENOENT, errno.ENOTDIR, *NOT_A_FILE)


def expanded(path: Path | str) -> str:
    """A path in which ``~`` and ``$VARIABLE`` stand for what they do in Airflow's own settings."""
    before, text = "", str(path)
    while text != before:
        before, text = text, os.path.expanduser(os.path.expandvars(text))
    return text


class Stamp(NamedTuple):
    """The identity of the content of a file, without reading it: it changes with each write."""

    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file from its ``stat``."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


def put_modes_back(*paths: Path) -> bool:
    """Give directories of ours back what their owner needs; whether it was missing of one."""
    was_missing = False
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and mode & 0o700 != 0o700:
                os.chmod(path, mode | 0o700)
                was_missing = True
    return was_missing


def stamp(path: Path | str) -> Stamp | None:
    """The stamp of the file at ``path``, or None if there is none."""
    try:
        return Stamp.of(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def current_stamp(path: Path | str) -> Stamp | None:
    """The stamp of a regular file as it is now, also on a network file system; None if there is none.

    What is known there of a file that is not opened may be a minute old; NFS asks its server when one is opened.

    :raises OSError: if it cannot be seen now.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return None
    try:
        return Stamp.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def unique_name(prefix: str) -> str:
    """A name that no other call, thread or process uses; it begins with ``prefix``."""
    return f"{prefix}{os.getpid()}-{_PROCESS_TOKEN}-{next(_COUNTER)}"


def publish(path: Path, data: bytes, *, durable: bool = False) -> Stamp:
    """Put ``data`` at ``path`` by one rename, so that a reader sees the old file or the new one.

    :param durable: whether it must survive a power cut: the file and its directory are flushed to disk.
    :return: the stamp of the new file.
    """
    return finish(publishing(path, (data,), durable=durable))


def publishing(path: Path, data: Iterable[bytes], *, durable: bool = True) -> Pieces[Stamp]:
    """The same in pieces, see :func:`publish`."""
    temporary, stamp = yield from writing_beside(path, data, durable=durable)
    try:
        if durable:
            yield from in_thread(stamp.size, partial(put, temporary, path))  # the old one may be long, too
        else:
            os.rename(temporary, path)  # unlike an exchange, it makes ext4 write the data before the name
    except BaseException:
        remove(temporary)
        raise
    if durable:
        sync_directory(path.parent)
    return stamp


def replace(path: Path, data: bytes) -> bool:
    """Replace the file at ``path`` by ``data``; False if there is none: then nothing was written.

    Where names can be exchanged (Linux) that is one step; elsewhere a file removed at the same moment comes back.
    """
    temporary, _ = write_beside(path, data, durable=False)
    try:
        if exchange(temporary, path):
            return True
        if stamp(path) is not None:
            os.rename(temporary, path)
            return True
        return False
    finally:
        remove(temporary)


def put(temporary: str, path: Path) -> None:
    """Give a finished file its name; the file of that name goes. It must have been flushed.

    Readers see it sooner where names can be exchanged: a rename waits until the old file has been freed.
    """
    if not exchange(temporary, path):
        os.rename(temporary, path)
        return
    with contextlib.suppress(OSError):  # a directory, that was there in place of a file
        os.unlink(temporary)


def publishing_with_backup(path: Path, data: Iterable[bytes], previous: Path) -> Pieces[tuple[Stamp, bool]]:
    """Publish in pieces, as :func:`publishing` does; the file that is replaced gets the name ``previous``.

    Another process may be writing the file at this very moment. Its new file, or what it still writes into the old one,
    is then in ``previous`` and not lost. The two names are exchanged in one step where the system can do that (Linux);
    elsewhere the old file is linked first.

    The file is flushed to disk, lest its name be there after a power cut and its content not. Its directory is not:
    the next durable :func:`publish` there does that, and names of one directory become durable in their order.

    :return: the stamp of the new file, and whether there was an old one.
    """
    temporary, stamp = yield from writing_beside(path, data, durable=True)
    try:
        return stamp, (yield from putting_with_backup(temporary, path, previous, size=stamp.size))
    except BaseException:
        remove(temporary)
        raise


def put_with_backup(temporary: str, path: Path, previous: Path) -> bool:
    """Give a finished file its name, see :func:`publishing_with_backup`; whether there was an old one."""
    if exchange(temporary, path):
        try:
            os.rename(temporary, previous)
        except OSError:
            exchange(temporary, path)  # the old file may be that of another process, and must not be lost
            raise
        return True
    existed = _link(path, previous)
    os.rename(temporary, path)
    return existed


def putting_with_backup(temporary: str, path: Path, previous: Path, *, size: int) -> Pieces[bool]:
    """The same in pieces, see :func:`put_with_backup`: removing a long file takes time."""
    return (yield from in_thread(size, partial(put_with_backup, temporary, path, previous)))


def publish_directory(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Give a finished directory its name, and make that and the names in it durable when this returns.

    For that, the files in it must have been flushed. Its own names are flushed after it has got its name, which does
    not delay its readers: they were made before, and file systems with a journal keep that order.

    :raises FileExistsError: if something of that name is there, were it an empty directory.
    """
    if not _renameat2(str(temporary), str(path), _RENAME_NOREPLACE):
        if stamp(path) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        try:
            os.rename(temporary, path)
        except OSError as error:
            # mergerfs says EXDEV of a directory that is there.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or stamp(path) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            raise
    if durable:
        sync_directory(path)
        sync_directory(path.parent)


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file that is ours, of mode 0600, for as long as a ``with`` block; it is made if it is missing.

    :param flags: more flags of ``open(2)``. A symlink is refused, and a pipe is not waited for.
    :return: a context manager that gives the descriptor.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        give(descriptor, path.parent)
        yield descriptor
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 into a directory that has not been published yet.

    :raises FileExistsError: if it is there.
    """
    with opened(path, os.O_WRONLY | os.O_EXCL) as descriptor:
        write_all(descriptor, data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of some data."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_beside(path: Path, data: bytes, *, durable: bool) -> tuple[str, Stamp]:
    """Write ``data`` to a new file of mode 0600 in the directory of ``path``; its name begins with a dot."""
    return finish(writing_beside(path, (data,), durable=durable))


def writing_beside(path: Path, data: Iterable[bytes], *, durable: bool) -> Pieces[tuple[str, Stamp]]:
    """The same in pieces, see :func:`write_beside`.

    :param data: what is written, piece by piece.
    """
    temporary = str(path.parent / unique_name(f".{path.name}."))
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            give(descriptor, path.parent)
            for number, piece in enumerate(data):
                if number:
                    yield False
                write_all(descriptor, piece)
            if durable:
                yield from in_thread(os.fstat(descriptor).st_size, partial(os.fsync, descriptor))
            stamp = Stamp.of(os.fstat(descriptor))
        finally:
            os.close(descriptor)
    except BaseException:
        remove(temporary)
        raise
    return temporary, stamp


def make_directory(path: Path, *, exist_ok: bool = False) -> None:
    """Make a directory of mode 0700.

    :param exist_ok: whether it may be there already.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if exist_ok and path.is_dir():
            return
        raise
    if _heir(path.parent) is not None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give(descriptor, path.parent)
        finally:
            os.close(descriptor)


def give(descriptor: int, directory: Path) -> None:
    """Give a file that root has made to the owner of its directory, who could not use it otherwise."""
    heir = _heir(directory)
    if heir is not None:
        os.fchown(descriptor, heir.st_uid, heir.st_gid)


def _heir(directory: Path) -> os.stat_result | None:
    """The owner for new files in a directory: that of the directory, if we are root and it is another user."""
    owner = os.stat(directory) if os.geteuid() == 0 else None
    return owner if owner is not None and owner.st_uid else None


def unlinking(path: Path) -> Pieces[None]:
    """Remove a file, if it is there, in pieces: what it takes grows with its length.

    :raises OSError: if it is there and cannot be removed.
    """
    found = stamp(path)
    if found is not None:
        yield from in_thread(found.size, partial(path.unlink, missing_ok=True))


def in_thread(size: int | None, work: Callable[[], T]) -> Pieces[T]:
    """Do work that takes long for a long file in another thread.

    :param size: of the file, in bytes; None: it takes long in any case.
    """
    if size is not None and size <= _PIECE_BYTES:
        return work()
    with ThreadPoolExecutor(1) as thread:  # its end is awaited: the caller may close its files next
        done = thread.submit(work)
        while not done.done():
            yield True
        return done.result()


def flush(*paths: Path | str) -> None:
    """Flush files to disk, together: a file system with a journal then needs fewer commits than one after the other."""
    finish(flushing(*paths))


def flushing(*paths: Path | str) -> Pieces[None]:
    """The same in pieces, see :func:`flush`."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)

        def flush_all() -> None:
            if hasattr(os, "posix_fadvise"):  # Linux begins to write pages that are not needed any more
                for descriptor in descriptors:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for descriptor in descriptors:
                os.fsync(descriptor)

        yield from in_thread(sum(os.fstat(descriptor).st_size for descriptor in descriptors), flush_all)


def sync_directory(path: Path) -> None:
    """Flush a directory, so that the names in it survive a power cut, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def open_regular(path: Path | str) -> int:
    """Open a regular file for reading; a symlink, a pipe or a device is refused, and none can block.

    :raises OSError: as ``open`` does; ``ELOOP`` for a symlink, ``EINVAL`` for what is not a regular file.
    """
    try:
        return _open_regular(path)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    # Another host has replaced it, and the kernel opens the old one for as long as it keeps the name: on GlusterFS a
    # second, on NFS up to a minute. A listing asks for the names again.
    os.listdir(os.path.dirname(path) or ".")
    return _open_regular(path)


def _open_regular(path: Path | str, more: int = 0) -> int:
    return _regular(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | more), path)


def open_log(path: Path | str | bytes, *, create: bool = True) -> int:
    """Open a log to append to it: it is no symlink to elsewhere, and no pipe to wait for.

    :param create: whether it is made where it is missing.
    :return: a descriptor that does not block, which makes no difference to a regular file.
    :raises OSError: as ``open`` does; ``ELOOP`` for a symlink, ``EINVAL`` for what is not a regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | os.O_CREAT if create else flags, 0o600)
    return _regular(descriptor, path)


def _regular(descriptor: int, path: Path | str | bytes) -> int:
    """A descriptor, if it is that of a regular file; otherwise it is closed, and the error EINVAL is raised."""
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    if is_regular:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))


def read_start(path: Path | str, length: int) -> bytes:
    """The first bytes of a regular file, which is opened as by :func:`open_regular`."""
    descriptor = open_regular(path)
    try:
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def read_start_directly(path: Path | str, length: int) -> bytes:
    """The same past what this machine keeps of the file, where its file system can do that.

    :param length: not more than a page.
    """
    with contextlib.suppress(OSError):
        descriptor = _open_regular(path, getattr(os, "O_DIRECT", 0))
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:  # the buffer must begin where a block of the disk could
                return page[: min(length, os.readv(descriptor, [page]))]
        finally:
            os.close(descriptor)
    return read_start(path, length)


def open_file(path: Path | str) -> FileIO:
    """Open a regular file as :func:`open_regular` does."""
    descriptor = open_regular(path)
    try:
        return FileIO(descriptor, "rb")
    except BaseException:  # it looks at the file too, which may be away by now
        os.close(descriptor)
        raise


def read(path: Path, *, limit: int | None = None) -> tuple[bytes, Stamp]:
    """The content of a regular file, and the stamp of what was read.

    :param limit: the size in bytes above which nothing is read, and the error TOO_LARGE is raised; default: none.
    """
    with open_file(path) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        if limit is not None and stamp.size > limit:
            raise OSError(TOO_LARGE, os.strerror(TOO_LARGE), str(path))
        return file.readall(), stamp


def read_if_there(path: Path) -> bytes:
    """The content of a regular file; nothing if there is certainly none.

    :raises OSError: if that cannot be known now.
    """
    try:
        return read(path)[0]
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return b""


def reading(path: Path) -> Pieces[tuple[list[bytes], Stamp]]:
    """The same in pieces, see :func:`read`; what is read comes in pieces, too."""
    with open_file(path) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        if stamp.size <= _PIECE_BYTES:
            return [file.readall()], stamp
        pieces = []
        while piece := file.read(_PIECE_BYTES):
            pieces.append(piece)
            yield False
        return pieces, stamp


def lock(descriptor: int, path: Path, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock a file that is open, without waiting; False if another process holds it.

    :param kind: ``fcntl.LOCK_EX``, or ``fcntl.LOCK_SH`` to share it.
    :raises NoLocksError: if its file system cannot do that.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            raise NoLocksError(path, error.strerror or str(error)) from None
        raise
    return True


def is_real_directory(path: Path) -> bool:
    """Whether ``path`` is a directory itself, not a symlink to one.

    :raises OSError: if that is not known, because the file system is away for instance.
    """
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def remove(path: Path | str | bytes) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@cache
def _libc_renameat2() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    # Python has no renameat2(2); glibc has it since 2.28, musl since 1.2.
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _link(path: Path, other: Path) -> bool:
    """Give a file a second name, in place of what has that name; False if there is no file, or there are no links."""
    if stamp(path) is None:
        return False
    remove(other)
    try:
        os.link(path, other, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, *_NO_LINKS):
            return False
        raise
    return True


def exchange(one: str, other: Path) -> bool:
    """Exchange two names in one step; False if there is no other, or the system or the file system cannot do that."""
    try:
        return _renameat2(one, str(other), _RENAME_EXCHANGE)
    except FileNotFoundError:
        return False


def _renameat2(source: str, target: str, flags: int) -> bool:
    """Rename with ``flags``; False where the system or the file system cannot do it."""
    function = _libc_renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    import ctypes

    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), target)
