"""The file system of a directory: whether other machines change it, and whether its locks hold for them (Linux)."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

_TABLE = Path("/proc/self/mountinfo")
# Of all others another machine may know more: NFS keeps the attributes of files for 3 to 60 s, see nfs(5).
_OF_ONE_MACHINE = {
    *("aufs", "bcachefs", "btrfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus"),
    *("jffs2", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs"),
    *("tmpfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs"),
    "fuse.fuse-overlayfs",  # of a container whose engine has no root
}
# Of FUSE these have locks for all machines; of others the kernel has locks for itself, unless they see to that.
_SHARED_LOCKS = {
    *("fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.lizardfs", "fuse.mfs", "fuse.moosefs"),
    "fuse.saunafs",
}
_OWN_LOCKS_OPTIONS = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}  # of NFS, and of Lustre
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted file system."""

    kind: str  # ext4, nfs4, fuse.sshfs
    point: str  # where it is mounted
    options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether other machines, or other mounts, may change it; also if that is not known of its kind."""
        return self.kind not in _OF_ONE_MACHINE

    @property
    def has_own_locks(self) -> bool:
        """Whether its locks hold here only, as far as that is known, while others may change it, too."""
        if not self.is_shared:
            return False
        if self.is_fuse:
            return self.kind not in _SHARED_LOCKS
        return self.kind == "vboxsf" or not _OWN_LOCKS_OPTIONS.isdisjoint(self.options)

    @property
    def shows_old_names(self) -> bool:
        """Whether a name may stand for a while for a file that another machine has replaced, also for who opens it.

        A listing of the directory mends that.
        """
        return self.is_fuse and self.is_shared

    @property
    def is_fuse(self) -> bool:
        """Whether a program is the file system; some do not say which one."""
        return self.kind.partition(".")[0] == "fuse"


def may_be_shared(path: Path) -> bool:
    """Whether a directory is in a file system that other machines, or other mounts, may change.

    :param path: that of the directory.
    """
    found = mount_of(path)
    return found is not None and found.is_shared


def mount_of(path: Path) -> Mount | None:
    """The file system of a file or directory; None if that is not known."""
    with contextlib.suppress(OSError):
        return find(os.stat(path).st_dev, os.path.realpath(path), _TABLE.read_text(errors="replace"))
    return None


def find(device: int, path: str, mounts: str) -> Mount | None:
    """The file system of a path; None if that is not known.

    :param device: its number, as stat(2) gives it. That of btrfs is not in the list: then the path alone decides.
    :param path: an absolute one without symlinks.
    :param mounts: ``/proc/<pid>/mountinfo``, see proc(5).
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    best: tuple[bool, int] = (False, -1)
    found = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, of_kind = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(of_kind) < 3:
            continue
        point = _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
        is_above = path == point or path.startswith(point.rstrip("/") + "/")
        rank = fields[2] == number, len(point) if is_above else -1
        if (rank[0] or is_above) and rank >= best:  # of several at one place the last one is seen
            best = rank
            found = Mount(of_kind[0], point, tuple(dict.fromkeys(f"{fields[5]},{of_kind[2]}".split(","))))
    return found
