"""Control groups of version 2 that limit memory, where this process may make some (Linux only).

It may in two cases. In any other one nothing is touched, since the groups are systemd's or somebody else's.

* It is in a group below one that was handed over: systemd says so of a unit with ``Delegate=`` in an attribute of the
  directory, or the directory belongs to the user of this process. No process may be in that group itself, since a group
  that divides its memory among those within cannot have any. With ``DelegateSubgroup=`` (systemd 254) that is so, also
  when the unit is started again while its earlier processes live on. Otherwise this process must not change that, for
  systemd could not start the next one in such a group.
* It is in a container, whose root group is the root of all groups that it sees, and in which nothing runs but this
  process, what it has started, and process 1. All of them are moved into a group within. The next one begins there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OWN = "air-executor-manager"  # the group in a container of what was there before
_DELEGATED = ("user.delegate", "trusted.delegate")
_UNITS = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")  # of systemd, which rules beside these
_ESCAPED = re.compile(r"\\([0-7]{3})")
_MOST_MOVES = 20  # looks whether new processes have come meanwhile
_MICROSECONDS = 1e6


class NoGroupsError(Exception):
    """No groups can be made here; the message is why."""


class Measured(NamedTuple):
    """What a group says of itself."""

    limit: int | None  # bytes; None: it has none
    peak: int | None  # bytes that it had at most; None: the system is older than Linux 5.19, or nothing was in it
    cpu_seconds: float
    is_killed: bool  # whether it had reached its limit, and the system has killed what was in it


@dataclass(frozen=True, slots=True)
class Group:
    """A group of one attempt.

    :ivar path: its directory.
    :ivar home: the file through which a process returns to where it was before.
    """

    path: str
    home: str

    @property
    def entry(self) -> str:
        """The file through which a process enters: it writes its number there, or 0."""
        return f"{self.path}/cgroup.procs"

    @property
    def processes(self) -> set[int]:
        """What lives in it now; nothing if that cannot be read."""
        with contextlib.suppress(OSError):
            return _processes(Path(self.path))
        return set()

    def measure(self) -> Measured:
        """What was used in it. What cannot be read is missing."""
        events, used = _numbers(f"{self.path}/memory.events"), _numbers(f"{self.path}/cpu.stat")
        # Those of groups above that have reached their own limit count as kills, too, but not as `oom`.
        is_killed = events.get("oom", 0) > 0 and events.get("oom_kill", 0) > 0
        seconds = round(used.get("usage_usec", 0) / _MICROSECONDS, 3)
        limit, peak = _number(f"{self.path}/memory.max"), _number(f"{self.path}/memory.peak")
        return Measured(limit, peak or None, seconds, is_killed)

    def remove(self) -> bool:
        """Remove it, unless something lives in it; whether it is gone."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups that this process may make.

    :ivar parent: the directory in which they are.
    :ivar home: the group of this process, and of others that belong to no attempt.
    """

    parent: Path
    home: Path

    def make(self, name: str, limit: int) -> Group:
        """Make a group whose processes are killed together if they need more than so many bytes of memory.

        :raises OSError: if that is not possible.
        """
        group = self._group(name)
        os.mkdir(group.path)
        try:
            _write(f"{group.path}/memory.max", str(limit))
            for optional, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with contextlib.suppress(FileNotFoundError, PermissionError):  # a system without swap, or an old one
                    _write(f"{group.path}/{optional}", value)
        except OSError:
            group.remove()
            raise
        return group

    def find(self, name: str) -> Group | None:
        """A group that was made before, perhaps by another process; None if there is none."""
        group = self._group(name)
        return group if os.path.isdir(group.path) else None

    def all(self, prefix: str) -> list[Group]:
        """The groups whose names begin so."""
        with contextlib.suppress(OSError):
            return [self._group(name) for name in os.listdir(self.parent) if name.startswith(prefix)]
        return []

    def _group(self, name: str) -> Group:
        return Group(f"{self.parent}/{name}", f"{self.home}/cgroup.procs")


def enter(entry: str, others: Iterable[int] = ()) -> bool:
    """Move this process into a group; whether that was possible.

    :param entry: the file through which a process enters.
    :param others: processes that are moved, too, if they live.
    """
    try:
        _write(entry, "0")
    except OSError:
        return False
    for pid in others:
        with contextlib.suppress(OSError):
            _write(entry, str(pid))
    return True


def find() -> Groups:
    """The groups that this process may make. In a container it is moved into another group.

    :raises NoGroupsError: if it may make none.
    """
    if not sys.platform.startswith("linux"):
        raise NoGroupsError("only Linux has control groups")
    try:
        found = own_group(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))
        if found is None:
            raise NoGroupsError("its control group is not mounted, or there are none of version 2")
        path, own = found
        if not (own / "cgroup.type").exists():
            raise NoGroupsError(f"{own} is the root of all control groups")
        if path == "/":
            return _of_container(own)
        return _handed_over(path, own)
    except OSError as error:
        raise NoGroupsError(f"{error.filename or 'control groups'}: {error.strerror}") from error


def own_group(groups: str, mounts: str) -> tuple[str, Path] | None:
    """The path of a process's group, and its directory; None if it has none of version 2, or that is not mounted.

    :param groups: ``/proc/<pid>/cgroup``, see cgroups(7).
    :param mounts: ``/proc/<pid>/mountinfo``, see proc(5): a mount may have a part of all groups.
    """
    path = next((line[3:] for line in groups.splitlines() if line.startswith("0::")), None)
    if path is None:
        return None
    for line in mounts.splitlines():
        before, _, kind = line.partition(" - ")
        fields = before.split(" ")
        if not kind.startswith("cgroup2 ") or len(fields) < 5:
            continue
        root, point = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), field) for field in fields[3:5])
        root = root.rstrip("/")
        if path == root or path.startswith(f"{root}/"):
            return path, Path(point + path[len(root) :].rstrip("/"))
    return None


def _handed_over(path: str, own: Path) -> Groups:
    """The groups beside that of this process.

    :raises NoGroupsError: if it must not make any there.
    """
    parent = own.parent
    if not (parent / "cgroup.type").exists():
        raise NoGroupsError(f"the group above {own} is not there, or is the root of all control groups")
    if own.name.endswith(_UNITS) or not (path == f"/{OWN}" or _is_delegated(parent)):
        raise NoGroupsError(f"{parent} is not delegated to it")
    if _processes(parent):
        raise NoGroupsError(f"there are processes in {parent} itself, and not in a group within (DelegateSubgroup=)")
    _share_memory(parent)
    return Groups(parent, own)


def _is_delegated(directory: Path) -> bool:
    """Whether a group was handed over to the user of this process."""
    if directory.stat().st_uid == os.geteuid() != 0:
        return True
    for name in _DELEGATED:
        with contextlib.suppress(OSError):  # others than root cannot read one of them
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _share_memory(directory: Path) -> None:
    """Let the groups in this one have memory of their own.

    :raises NoGroupsError: if it has none itself, or processes may not be moved there.
    :raises OSError: if that is not possible.
    """
    if "memory" not in _read(directory / "cgroup.controllers").split():
        raise NoGroupsError(f"memory cannot be limited in {directory}")
    if not os.access(directory / "cgroup.procs", os.W_OK):
        raise NoGroupsError(f"processes may not be moved in {directory}")
    if "memory" not in _read(directory / "cgroup.subtree_control").split():
        _write(directory / "cgroup.subtree_control", "+memory")


def _of_container(root: Path) -> Groups:
    """The groups in the root group of a container, whose processes are moved.

    :raises NoGroupsError: if it has others than ours.
    :raises OSError: if they may not be moved.
    """
    _refuse_others(root)
    if "memory" not in _read(root / "cgroup.controllers").split():
        raise NoGroupsError(f"memory cannot be limited in {root}")
    home = root / OWN
    home.mkdir(exist_ok=True)
    try:
        for _ in range(_MOST_MOVES):
            if not _move(root, home):
                break
            _refuse_others(root)
        _share_memory(root)
    except (OSError, NoGroupsError):
        with contextlib.suppress(OSError):
            _move(home, root)
            home.rmdir()
        raise
    return Groups(root, home)


def _refuse_others(group: Path) -> None:
    """Check that all processes of a group are ours.

    :raises NoGroupsError: if they are not.
    """
    processes = _processes(group)
    if processes - {1} - set(_family()):
        raise NoGroupsError(f"other processes are in {group}, too")


def _family() -> Iterator[int]:
    """This process, and what it has started, as far as it is known by its parents."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name of the program, in parentheses, may hold anything.
                parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for pid in found:  # it grows meanwhile
        yield pid
        found += children.get(pid, [])


def _move(source: Path, target: Path) -> bool:
    """Move all processes of a group into another one; whether there were any.

    :raises OSError: if one may not be moved.
    """
    processes = _processes(source)
    for pid in processes:
        try:
            _write(target / "cgroup.procs", str(pid))
        except OSError as error:
            if error.errno != errno.ESRCH:  # it has ended
                raise
    return bool(processes)


def _processes(group: Path) -> set[int]:
    """The processes of a group itself; 0 is one that cannot be seen from here."""
    return set(map(int, _read(group / "cgroup.procs").split()))


def _numbers(path: str) -> dict[str, int]:
    """A file with a name and a number in each line; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return {name: int(value) for name, value in (line.split() for line in _read(path).splitlines())}
    return {}


def _number(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(_read(path))
    return None


def _read(path: str | Path) -> str:
    return os.fsdecode(Path(path).read_bytes())


def _write(path: str | Path, text: str) -> None:
    """Write into a file of the system, at once."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
