"""NFS by the server and the client of this machine's kernel, for a virtual machine: it changes the whole machine.

``python -m tests.support.nfs KIND COMMAND...`` runs a command there, with two mounts as its base paths.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Both clients are this kernel, which would show one mount twice.
KINDS = {"4.2": "vers=4.2,nosharecache", "3-nolock": "vers=3,nolock,nosharecache"}
BASE_PATHS = "AIR_EXECUTOR_TEST_BASE_PATHS"  # the variable with the directories of the tests, separated by colons


def serve(path: Path) -> None:
    """Serve a directory to this machine."""
    for place in ("/run/rpcbind", "/var/lib/nfs/rpc_pipefs"):
        Path(place).mkdir(parents=True, exist_ok=True)
    # No delegations: a kernel that is the server and the client waits for itself to give one back.
    Path("/proc/sys/fs/leases-enable").write_text("0\n")
    # As long as clients of NFS 3 may have back their locks from before, those of NFS 4 get none either: 50 s otherwise.
    for name in ("nlm_timeout", "nlm_grace_period"):
        Path("/proc/sys/fs/nfs", name).write_text("3\n")
    _run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    for name, seconds in {"nfsv4gracetime": 10, "nfsv4leasetime": 10}.items():
        Path("/proc/fs/nfsd", name).write_text(f"{seconds}\n")
    _run("rpcbind", "-w")
    _run("exportfs", "-i", "-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=0", f"127.0.0.1:{path}")
    _run("rpc.mountd")
    _run("rpc.nfsd", "4")
    Path("/proc/fs/nfsd/v4_end_grace").write_text("Y\n")  # nobody has a lock from before
    with tempfile.TemporaryDirectory() as warm_up:
        _run("mount", "-t", "nfs", "-o", KINDS["4.2"], "127.0.0.1:/", warm_up)
        _run("flock", f"{warm_up}/x", "true")  # the first lock takes some seconds all the same
        _run("umount", warm_up)


@contextlib.contextmanager
def mounted(served: Path, kind: str, place: Path) -> Iterator[list[Path]]:
    """Two mounts of the directory that is served.

    :param kind: one of :data:`KINDS`.
    :param place: a directory for them.
    """
    places = [place / name for name in ("A", "B")]
    source = "/" if kind.startswith("4") else str(served)  # that of fsid=0
    for each in places:
        each.mkdir()
        _run("mount", "-t", "nfs", "-o", KINDS[kind], f"127.0.0.1:{source}", str(each))
    try:
        yield places
    finally:
        for each in places:
            _run("umount", "--lazy", str(each))


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert not done.returncode, (words, done.stderr)


def main() -> int:
    """Run a command on two mounts, and return its exit code."""
    kind, *words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "served").mkdir()
        serve(base / "served")
        with mounted(base / "served", kind, base) as places:
            given = {**os.environ, BASE_PATHS: ":".join(map(str, places))}
            return subprocess.run(words, check=False, env=given).returncode


if __name__ == "__main__":
    sys.exit(main())
