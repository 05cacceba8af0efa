"""Whether the file system of a base path can do what the product needs, found out by trying it.

Everything is tried in a directory of its own in the base path, ``.check-...``, which is removed. It takes some
milliseconds on a local disk. What the file system cannot do is either done otherwise, or breaks a promise: then no
manager is to run there.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import NoLocksError, UnfitBasePathError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.system import mounts
from airflow_provider_air_executor.system.mounts import Mount

SECONDS = 10.0  # that a file system may take, for a caller that does not wait for ever
LOCKS = "locks (flock)"
NOT_NOTIFIED = "the manager polls: new jobs and requests are found after poll_interval"

_ANSWER = "an answer"
_PREFIX = ".check-"
_ABANDONED_SECONDS = 3600  # after which what was left by a process that was killed is removed
_CLOCK_SECONDS = 2.0  # by which clocks may differ
_LONGEST_NAME = 255  # bytes
_NAME_OF_TASK = 200  # bytes of its id
# An error of the device is not among these: some file systems say so of what they cannot do (rclone).
_PASSING = set(files.TRANSIENT) - {errno.EIO}
_TEXT, _OTHER_TEXT = b"one of two texts", b"the other of two"  # of the same length
_ANOTHER = "choose another file system; mounts of object stores (rclone, s3fs) are not fit"


class Verdict(enum.StrEnum):
    """What follows from a finding."""

    WORKS = "works"
    OTHERWISE = "otherwise"  # it does not work, and is done otherwise
    UNKNOWN = "unknown"  # it could not be tried
    REFUSED = "refused"  # a promise cannot be kept


class Finding(NamedTuple):
    """What was tried, and what has become of it."""

    subject: str
    verdict: Verdict = Verdict.WORKS
    seen: str = ""  # what has happened
    means: str = ""  # what the product does otherwise, or what it cannot promise
    change: str = ""  # what helps

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        change = f"; {self.change}" if self.change else ""
        seen = f" ({self.seen})" if self.seen else ""
        return f"{self.subject}{seen}: {self.means}{change}"


class Trial(NamedTuple):
    """Something that a file system is tried for.

    :param trying: tries it in a directory, with names that no other trial uses there, and returns what is wrong, if
        something is. An OSError is wrong, too.
    :param verdict: what follows if something is wrong.
    :param means: what that means.
    :param change: what helps.
    """

    subject: str
    trying: Callable[[Path], str]
    verdict: Verdict
    means: str
    change: str = _ANOTHER

    def run(self, directory: Path) -> Finding:
        """Try it."""
        try:
            seen = self.trying(directory)
        except NoLocksError as error:
            seen = error.why
        except OSError as error:
            seen = error.strerror or str(error)
            if error.errno in _PASSING:
                return Finding(self.subject, Verdict.UNKNOWN, seen, "it could not be tried")
        return Finding(self.subject, self.verdict, seen, self.means, self.change) if seen else Finding(self.subject)


def check(base_path: Path, *, notification: bool = True) -> tuple[Finding, ...]:
    """Try what is needed of the file system of a directory that is there.

    What cannot be tried now, because the file system is full or away or belongs to another user, is not refused. Nor is
    one where nothing works.

    :param notification: whether that of changes is tried, too, which takes longer than all else.
    """
    directory = base_path / files.unique_name(_PREFIX)
    with contextlib.suppress(OSError):
        _remove_abandoned(base_path)
    try:
        files.make_directory(directory)
    except OSError as error:
        why = error.strerror or str(error)
        return (Finding("a directory of its own", Verdict.UNKNOWN, why, "nothing could be tried in it"),)
    try:
        tried = [trial.run(directory) for trial in TRIALS if notification or trial.trying is not _notified]
    finally:
        with contextlib.suppress(OSError):
            _remove(directory)
    if not any(finding.verdict is Verdict.WORKS for finding in tried):
        tried = [finding._replace(verdict=Verdict.UNKNOWN) for finding in tried]
    return (*tried, *_of_kind(mounts.mount_of(base_path)))


def check_in_time(base_path: Path, seconds: float = SECONDS) -> tuple[Finding, ...]:
    """The same for a caller that does not wait for a file system that does not answer.

    :param seconds: the longest wait.
    """
    found: list[Finding] = []
    thread = Thread(target=lambda: found.extend(check(base_path)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        why = f"the file system has not answered within {seconds:g} s"
        return (Finding(_ANSWER, Verdict.REFUSED, why, "nothing can be done there", "see whether its server is up"),)
    return tuple(found)


def is_away(findings: Iterable[Finding]) -> bool:
    """Whether the file system has not answered."""
    return any(finding.subject == _ANSWER for finding in findings)


def refuse(base_path: Path, lock_path: Path, findings: Iterable[Finding]) -> None:
    """Refuse a base path that a manager must not use, by the first thing that is refused.

    :raises NoLocksError: if its file system has no locks.
    :raises UnfitBasePathError: if a promise cannot be kept there.
    """
    for finding in findings:
        if finding.verdict is Verdict.REFUSED:
            if finding.subject == LOCKS:
                raise NoLocksError(lock_path, finding.seen)
            mount = None if finding.subject == _ANSWER else mounts.mount_of(base_path)
            raise UnfitBasePathError(base_path, mount.kind if mount is not None else "", finding.sentence)


def what_is_otherwise(findings: Iterable[Finding]) -> str:
    """What is done otherwise in a base path, and what could not be tried, in a line; empty if there is nothing."""
    said, unknown = [], []
    for finding in findings:
        if finding.verdict is Verdict.OTHERWISE:
            said.append(finding.means)
        elif finding.verdict is Verdict.UNKNOWN:
            unknown.append(f"{finding.subject} ({finding.seen})")
    return "; ".join([*said, f"it could not be tried: {', '.join(unknown)}"] if unknown else said)


# -- what is tried -----------------------------------------------------------------------------------------


def _exclusive(directory: Path) -> str:
    path = directory / "exclusive"
    files.write_new(path, b"")
    try:
        files.write_new(path, b"")
    except FileExistsError:
        return ""
    return "a file that was there was created again"


def _read_back(directory: Path) -> str:
    path = directory / "written"
    os.rename(files.write_beside(path, _TEXT, durable=False)[0], path)
    found = files.read(path)[0]
    if found != _TEXT:
        return f"{len(found)} of {len(_TEXT)} bytes are read"
    return "" if path.name in os.listdir(directory) else "a new file is not in the list of its directory"


def _replaced(directory: Path) -> str:
    path = directory / "replaced"
    files.write_new(path, _TEXT)
    files.publish(path, _OTHER_TEXT)
    return "" if files.read(path)[0] == _OTHER_TEXT else "the old content is still read"


def _directory_renamed(directory: Path) -> str:
    one, two, new = directory / "one", directory / "two", directory / "new"
    for path in (one, two):
        files.make_directory(path)
        files.write_new(path / "file", path.name.encode())
    os.rename(one, new)
    if files.read(new / "file")[0] != b"one":
        return "it has not what it had before"
    with contextlib.suppress(OSError):  # ENOTEMPTY or EEXIST, on mergerfs EXDEV
        os.rename(new, two)
    return "" if files.read(two / "file")[0] == b"two" else "one that holds files was replaced by another one"


def _appended(directory: Path) -> str:
    path = directory / "appended"
    one, two = files.open_log(path), files.open_log(path)
    try:
        for descriptor, text in ((one, b"1"), (two, b"2"), (one, b"3")):
            files.write_all(descriptor, text)
    finally:
        os.close(one)
        os.close(two)
    found = files.read(path)[0]
    return "" if found == b"123" else f"of 3 bytes that two programs wrote, {len(found)} are in the file"


def _written_in_place(directory: Path) -> str:
    path = directory / "in-place"
    with files.opened(path, os.O_WRONLY | os.O_EXCL) as descriptor:
        os.pwrite(descriptor, b"b", 1)
        os.pwrite(descriptor, b"a", 0)
    return "" if files.read(path)[0] == b"ab" else "what was written is not there"


def _locked(directory: Path) -> str:
    path = directory / "locked"
    with files.opened(path, os.O_RDWR) as one, files.opened(path, os.O_RDWR) as two:
        files.lock(one, path)
        return "two programs have the same lock" if files.lock(two, path) else ""


def _flushed(directory: Path) -> str:
    with files.opened(directory / "flushed", os.O_WRONLY) as descriptor:
        os.fsync(descriptor)
    return ""


def _directory_flushed(directory: Path) -> str:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ""


def _exchanged(directory: Path) -> str:
    path = directory / "exchanged"
    files.write_new(path, _TEXT)
    if not files.exchange(files.write_beside(path, _OTHER_TEXT, durable=False)[0], path):
        return "not supported"
    return "" if files.read(path)[0] == _OTHER_TEXT else "the names are the same as before"


def _kept(directory: Path) -> str:
    path = directory / "kept"
    files.write_new(path, b"")
    os.link(path, directory / "linked", follow_symlinks=False)
    return ""


def _long_names(directory: Path) -> str:
    longest = 0
    for length in (100, 143, _NAME_OF_TASK, _LONGEST_NAME):
        try:
            files.write_new(directory / ("n" * length), b"")
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT):
                raise
            return f"{length} bytes are too long, {longest} are not"
        longest = length
    return ""


def _case_kept(directory: Path) -> str:
    files.write_new(directory / "case", b"")
    return "upper case is taken for lower case" if files.stamp(directory / "CASE") is not None else ""


def _modes_kept(directory: Path) -> str:
    path = directory / "mode"
    files.write_new(path, b"")
    os.chmod(path, 0o600)
    for each in (path, directory):
        mode = stat.S_IMODE(os.stat(each).st_mode)
        if mode & 0o077:
            return f"what was to be for its owner only has the mode {mode:04o}"
    return ""


def _same_clock(directory: Path) -> str:
    path = directory / "clock"
    before = time.time()
    files.write_new(path, _TEXT)
    written = os.stat(path).st_mtime
    if before - _CLOCK_SECONDS <= written <= time.time() + _CLOCK_SECONDS:
        return ""
    return f"it is {abs(written - before):.0f} s {'ahead' if written > before else 'behind'}"


def _notified(directory: Path) -> str:
    notifier = Notifier()
    try:
        if not notifier.works:
            return "this system has no inotify, or no instance of it is left"
        notifier.add("", directory)
        if not notifier.has(""):
            return "it cannot be watched, or no watch is left"
        files.write_new(directory / "notified", b"")
        return "" if any(name == "notified" for _, name in notifier.read()[0]) else "a new file was not notified"
    finally:
        notifier.close()


_Refused = partial(Trial, verdict=Verdict.REFUSED)
_Otherwise = partial(Trial, verdict=Verdict.OTHERWISE)
TRIALS = (
    _Refused(
        "exclusive creation of files",
        _exclusive,
        means="a task could run twice at the same time",
    ),
    _Refused(
        "reading what was just written",
        _read_back,
        means="each job would end as invalid",
    ),
    _Refused(
        "replacing a file by a rename",
        _replaced,
        means="the state of a job could not be published",
    ),
    _Refused(
        "renaming directories",
        _directory_renamed,
        means="no job could be submitted exactly once",
    ),
    _Refused(
        "appending to files",
        _appended,
        means="the output of tasks would be lost",
    ),
    _Refused(
        "writing in the middle of files",
        _written_in_place,
        means="the ends of tasks could not be recorded",
    ),
    _Refused(
        LOCKS,
        _locked,
        means="two managers would run the same jobs",
        change="have it mounted with locks (flock; NFS needs a lock service, Lustre the option flock), or choose "
        "another file system",
    ),
    _Refused(
        "flushing files to disk (fsync)",
        _flushed,
        means="a submitted job could be lost with the power",
    ),
    _Otherwise(
        "flushing directories to disk (fsync)",
        _directory_flushed,
        means="directories are not flushed, so a job of the last seconds may be lost with the power",
    ),
    _Otherwise(
        "exchanging names (renameat2)",
        _exchanged,
        means="names are not exchanged: the old file is linked before it is replaced",
        change="nothing has to be changed",
    ),
    _Otherwise(
        "keeping the old file when it is replaced",
        _kept,
        means="there are no links: where names are not exchanged either, what a program writes into tasks.json while "
        "the manager replaces it is lost",
        change="let tasks add tasks by `air-executor add-task`, and not by writing to the file",
    ),
    _Otherwise(
        "names of 255 bytes",
        _long_names,
        means="a task whose id is too long for a name there fails",
        change="give tasks short ids",
    ),
    _Otherwise(
        "upper and lower case in names",
        _case_kept,
        means="two tasks of a job, or two jobs, whose names differ by case only get into each other's way",
        change="give them names that differ otherwise",
    ),
    _Otherwise(
        "modes of files",
        _modes_kept,
        means="other users may read jobs, with their secrets",
        change="mount it with modes for its owner only (umask=077, or file_mode=0600 and dir_mode=0700), or keep "
        "others out of a directory above it",
    ),
    _Otherwise(
        "the clock of the file system",
        _same_clock,
        means="times by the clock of the file system differ from those by the clock here",
        change="set both clocks by the same source (NTP)",
    ),
    _Otherwise(
        "notification of changes (inotify)",
        _notified,
        means=NOT_NOTIFIED,
        change="raise fs.inotify.max_user_instances or max_user_watches if they are used up, or set poll_interval to a "
        "second",
    ),
)


def _of_kind(mount: Mount | None) -> Iterable[Finding]:
    """What cannot be tried from one machine alone, and is known by the kind of the file system."""
    if mount is None or not mount.is_shared:
        return
    yield Finding(
        "notification of changes by other machines",
        Verdict.OTHERWISE,
        f"it is {mount.kind}",
        "of what another machine, or another mount, writes there is no notification: the manager looks five times a "
        "second whether its bell was rung, and finds jobs that are written by hand after poll_interval",
        "nothing has to be changed; if jobs are written by hand, set poll_interval to a second",
    )
    if mount.has_own_locks:
        yield Finding(
            "locks that hold for other machines",
            Verdict.OTHERWISE,
            f"it is {mount.kind} ({','.join(mount.options)})",
            "a lease, and not the lock, keeps managers on other machines, or other mounts, from running the same jobs",
            "nothing has to be changed; if a manager was killed, the next one elsewhere starts half a minute later",
        )


# -- tidying up --------------------------------------------------------------------------------------------


def _remove(directory: Path) -> None:
    """Remove a directory with what is in it. All of it is ours, and none of it is a symlink.

    :raises OSError: if that is not possible.
    """
    with os.scandir(directory) as listed:
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                _remove(Path(entry.path))
            else:
                os.unlink(entry.path)
    os.rmdir(directory)


def _remove_abandoned(base_path: Path) -> None:
    """Remove what a process has left here that was killed.

    :raises OSError: if that is not possible.
    """
    with os.scandir(base_path) as listed:
        found = [entry for entry in listed if entry.name.startswith(_PREFIX)]
    for entry in found:
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_SECONDS:
            _remove(Path(entry.path))
