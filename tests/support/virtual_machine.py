"""A virtual machine with a kernel of its own, in which a command runs: for what the kernel of this machine cannot do.

It is User-Mode Linux: a Linux that runs as a process. Its processes are processes of this machine; their system calls
alone take longer. It has one processor and the files of this machine; what it writes is in its memory and gone with it.
All of its control groups are of version 2.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.waiting import PATIENCE

_CHECKOUT = Path(__file__).parents[2]
_KERNEL = "linux.uml"
_MODULES = Path("/usr/lib/uml/modules")
_WANTED = ("overlay", "nfsv3", "nfsv4", "nfsd")
_MEMORY = "2G"
LONGEST = 2 * PATIENCE
INSIDE = "AIR_EXECUTOR_TEST_IN_VIRTUAL_MACHINE"
IS_INSIDE = INSIDE in os.environ  # whether this is the virtual machine, where tests may change what they like
_ENDED = re.compile(r"^air-executor-test: it has ended with (\d+)$", re.MULTILINE)
# /proc of this machine shows this program as that of every process of the other one, until that has its own.
_INIT = """\
#!/bin/sh
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
for module in {modules}; do busybox insmod $module; done
mount -t tmpfs -o mode=755,size=50% writes {top}
cd {top}
mkdir upper work new
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay new
cd new
mount -t tmpfs -o mode=1777 run run
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devices dev
mkdir -p dev/pts dev/shm run/old
mount -t devpts devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t cgroup2 cgroup2 sys/fs/cgroup
busybox ifconfig lo up
echo +memory >sys/fs/cgroup/cgroup.subtree_control
pivot_root . run/old
exec chroot . /bin/sh {begin}
"""
_BEGIN = """\
umount -l /run/old
cd {directory}
{command} </dev/null 2>&1
echo "air-executor-test: it has ended with $?"
exec busybox poweroff -f
"""


class Ended(NamedTuple):
    """How a command has ended."""

    exit_code: int | None  # None: the machine has ended before it
    output: str


def missing() -> list[str]:
    """What the machine needs and is not there."""
    found = [] if os.geteuid() == 0 else ["root, who may read all files"]
    return found + [name for name in (_KERNEL, "busybox") if shutil.which(name) is None]


def run(words: Sequence[str], environment: Mapping[str, str], longest: float = LONGEST) -> Ended:
    """Run a command in a virtual machine, in the directory of the checkout, as root.

    :param environment: all of it.
    :param longest: seconds after which the machine is ended.
    """
    with tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp") as name:
        directory = Path(name)
        given = shlex.join(["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *words])
        begin, init, top = directory / "begin", directory / "init", directory / "top"
        begin.write_text(_BEGIN.format(directory=shlex.quote(str(_CHECKOUT)), command=given))
        init.write_text(_INIT.format(modules=" ".join(_modules()), top=top, begin=begin))
        init.chmod(0o700)
        top.mkdir()
        said = directory / "said"
        with said.open("wb") as output:
            machine = subprocess.Popen(
                _machine(directory, init),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its processes are in it, too
            )
            try:
                machine.wait(longest)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
        text = said.read_text(errors="replace").replace("\r", "")
    ended = _ENDED.search(text)
    return Ended(int(ended[1]) if ended else None, text)


def _modules() -> list[str]:
    """The files of the modules of its kernel that are loaded, in the order in which it takes them."""
    found: dict[str, None] = {}
    for listed in sorted(_MODULES.glob("*/modules.dep")):
        for line in listed.read_text().splitlines():
            name, _, needed = line.partition(":")
            if Path(name).name.partition(".")[0] in _WANTED:
                found.update(dict.fromkeys(str(listed.parent / each) for each in [*reversed(needed.split()), name]))
    return list(found)


def _machine(directory: Path, init: Path) -> list[str]:
    """The command line of the machine."""
    return [
        *(_KERNEL, f"mem={_MEMORY}", f"uml_dir={directory}/", "umid=machine"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"),
        *("con=null", "con0=null,fd:1", "ssl=null", "quiet", "loglevel=1", "panic=-1"),
    ]


def run_tests(*words: str, before: Sequence[str] = (), longest: float = LONGEST, **variables: str) -> None:
    """Run tests there, with pytest; the test that asks for it is skipped where that cannot be had.

    :param words: for pytest: a file of tests, and options.
    :param before: a command that runs pytest, whose words are added to it.
    :param longest: see :func:`run`.
    :param variables: more of the environment.
    :raises AssertionError: if one of them fails, or none is run.
    """
    lacking = missing()
    if lacking:
        pytest.skip(f"there is no virtual machine without {', '.join(lacking)}; see make virtual-machine")
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    own = {"HOME": "/root", "TMPDIR": "/run", "PYTHONDONTWRITEBYTECODE": "1", INSIDE: "1"}
    pytest_words = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", *words]
    done = run([*before, *pytest_words], {**kept, **own, **variables}, longest)
    assert done.exit_code == 0, done.output
    assert " passed" in done.output
