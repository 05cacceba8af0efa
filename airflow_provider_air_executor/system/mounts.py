"""Whether what this machine knows of a directory may be old, since other machines change it too (Linux only)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# The kernel keeps the attributes of files of these for some time: NFS for 3 to 60 s, see nfs(5).
_SHARED = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2"),
    *("orangefs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
}


def may_be_shared(path: Path) -> bool:
    """Whether a directory is in a file system that other machines, or other mounts, may change.

    :param path: that of the directory.
    """
    with contextlib.suppress(OSError):
        kind = kind_of(os.stat(path).st_dev, Path("/proc/self/mountinfo").read_text(errors="replace"))
        return kind in _SHARED or kind.partition(".")[0] == "fuse"
    return False


def kind_of(device: int, mounts: str) -> str:
    """The kind of a file system; empty if that is not known.

    :param device: its number, as stat(2) gives it.
    :param mounts: ``/proc/<pid>/mountinfo``, see proc(5).
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2:3] == [number]:
            return after.partition(" ")[0]
    return ""
