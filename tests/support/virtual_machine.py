"""A virtual machine with a kernel of its own, in which a command runs: for what the kernel of this machine cannot do.

It has the files of this machine, and what it writes is in its memory and gone with it. All of its control groups are of
version 2. Where the processor cannot run it by itself, it is emulated, which takes ten times as long.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.long import IS_WANTED
from tests.support.waiting import PATIENCE, wait_until

_BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "air-executor/virtual-machine"
_CHECKOUT = Path(__file__).parents[2]
_QEMU = "qemu-system-x86_64"
_FILE_SERVERS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_KVM = Path("/dev/kvm")
_MEMORY = "2G"
LONGEST = 2 * PATIENCE
INSIDE = "AIR_EXECUTOR_TEST_IN_VIRTUAL_MACHINE"
IS_INSIDE = INSIDE in os.environ  # whether this is the virtual machine, where tests may change what they like
_ENDED = re.compile(r"^air-executor-test: it has ended with (\d+)$", re.MULTILINE)
_INIT = """\
#!/bin/busybox sh
set -e
export PATH=/bin
busybox mkdir -p /proc /lower /writes /new
busybox mount -t proc proc /proc
for module in /modules/*; do busybox insmod $module; done
busybox mount -t virtiofs -o ro host /lower
busybox mount -t tmpfs -o mode=755,size=50% writes /writes
busybox mkdir /writes/upper /writes/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work overlay /new
busybox mount -t tmpfs -o mode=1777 run /new/run
busybox cp /begin /new/run/begin
busybox mount -t proc proc /new/proc
busybox mount -t sysfs sysfs /new/sys
busybox mount -t devtmpfs devices /new/dev
busybox mkdir -p /new/dev/pts /new/dev/shm
busybox mount -t devpts devpts /new/dev/pts
busybox mount -t tmpfs -o mode=1777 shm /new/dev/shm
busybox mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
busybox ifconfig lo up
echo +memory >/new/sys/fs/cgroup/cgroup.subtree_control
busybox umount /proc
exec busybox switch_root /new /bin/sh /run/begin
"""
_BEGIN = """\
cd {directory}
{command} </dev/null 2>&1
echo "air-executor-test: it has ended with $?"
exec {busybox} poweroff -f
"""


class Ended(NamedTuple):
    """How a command has ended."""

    exit_code: int | None  # None: the machine has ended before it
    output: str


def missing() -> list[str]:
    """What the machine needs and is not there."""
    found = [] if os.geteuid() == 0 else ["root, who may read all files"]
    found += [name for name in (_QEMU, "busybox") if shutil.which(name) is None]
    if _file_server() is None:
        found.append("virtiofsd")
    if not (_BUILT / "vmlinuz").exists():
        found.append("a kernel (make virtual-machine)")
    return found


def _file_server() -> str | None:
    return next((path for path in _FILE_SERVERS if os.access(path, os.X_OK)), None)


def run(words: Sequence[str], environment: Mapping[str, str], longest: float = LONGEST) -> Ended:
    """Run a command in a virtual machine, in the directory of the checkout, as root.

    :param environment: all of it.
    :param longest: seconds after which the machine is ended.
    """
    with tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp") as name:
        directory = Path(name)
        busybox = shutil.which("busybox") or "busybox"
        given = shlex.join(["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *words])
        begin = _BEGIN.format(directory=shlex.quote(str(_CHECKOUT)), command=given, busybox=busybox)
        (directory / "initramfs").write_bytes(_archive(dict(_files(Path(busybox), begin))))
        server = _serve_files(directory / "files")
        said = directory / "said"
        try:
            with said.open("wb") as output:
                subprocess.run(
                    _machine(directory),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=longest,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            pass
        finally:
            server.kill()
            server.communicate()
        text = said.read_text(errors="replace").replace("\r", "")
    ended = _ENDED.search(text)
    return Ended(int(ended[1]) if ended else None, text)


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
    if is_emulated() and not IS_WANTED:
        pytest.skip("takes long where the virtual machine is emulated; AIR_EXECUTOR_TEST_LONG=1")
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    own = {"HOME": "/root", "TMPDIR": "/run", "PYTHONDONTWRITEBYTECODE": "1", INSIDE: "1"}
    pytest_words = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", *words]
    done = run([*before, *pytest_words], {**kept, **own, **variables}, longest)
    assert done.exit_code == 0, done.output
    assert " passed" in done.output


def _serve_files(socket: Path) -> subprocess.Popen[bytes]:
    """Start what gives the machine the files of this one."""
    options = "source=/,sandbox=chroot,cache=always"
    server = subprocess.Popen(
        [_file_server() or "virtiofsd", f"--socket-path={socket}", "-o", options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: socket.exists() or server.poll() is not None, what="it serves files")
    assert server.poll() is None, server.communicate()[1]
    return server


def is_emulated() -> bool:
    """Whether it is slow. A virtual machine itself may have the device of KVM although its processor cannot do that."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return not (os.access(_KVM, os.R_OK | os.W_OK) and {"vmx", "svm"} & set(flags))


def _machine(directory: Path) -> list[str]:
    """The command line of the machine."""
    kernel = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t cgroup_no_v1=all"
    options = {
        "machine": f"q35,accel={'tcg' if is_emulated() else 'kvm'}",
        "cpu": "max",
        "smp": "2",
        "m": _MEMORY,
        "display": "none",
        "serial": "stdio",
        "kernel": str(_BUILT / "vmlinuz"),
        "initrd": str(directory / "initramfs"),
        "append": kernel,
        "object": f"memory-backend-memfd,id=memory,size={_MEMORY},share=on",
        "numa": "node,memdev=memory",
        "chardev": f"socket,id=files,path={directory / 'files'}",
        "device": "vhost-user-fs-pci,chardev=files,tag=host",
    }
    words = [word for name, value in options.items() for word in (f"-{name}", value)]
    return [_QEMU, "-nodefaults", "-no-user-config", "-no-reboot", *words]


def _files(busybox: Path, begin: str) -> Iterator[tuple[str, bytes]]:
    """What the machine has in its memory when it begins."""
    yield "init", _INIT.encode()
    yield "begin", begin.encode()
    yield "bin/busybox", busybox.read_bytes()
    for module in sorted((_BUILT / "modules").iterdir()):
        yield f"modules/{module.name}", module.read_bytes()


def _archive(files: Mapping[str, bytes]) -> bytes:
    """An archive as the kernel unpacks it: cpio, of the kind newc."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    entries = [(name, 0o40755, b"") for name in ("dev", *folders)]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    archive = b""
    for number, (name, mode, data) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        archive += _padded(header) + _padded(data)
    return archive


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
