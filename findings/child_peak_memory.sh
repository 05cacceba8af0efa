#!/usr/bin/env bash
# The peak memory that wait4 reports for a child is at least that of the process that started it.
#
# Expected: ru_maxrss of a /bin/true is a few MB, whoever starts it: exec gives the process a new memory.
# Seen with Python 3.11.7 and Linux 6.18, and with joblib's loky 3.5.6 as a launcher: some 300 MB, the launcher's
# own peak. exec_mmap of the kernel keeps the highest peak of the old memory in signal->maxrss, which exec does not reset.
# With vfork (subprocess, posix_spawn) the old memory is the launcher's own, with all that it ever held. With fork it is
# the copy, with what the launcher holds at that moment. A shell in between does not help.
# Here: Task.usage has a peak memory only where it is higher than the manager's own peak (jobs/usage.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check loky==3.5.6
cat >"$work/children.py" <<'PYTHON'
import os
import subprocess

started = []  # so that no destructor waits for them first


def peak(start):
    """Megabytes that wait4 reports for a child."""
    _, _, used = os.wait4(start(), 0)
    return used.ru_maxrss // 1024


def opened():
    started.append(subprocess.Popen(["/bin/true"]))
    return started[-1].pid


def forked():
    pid = os.fork()
    if not pid:
        os.execv("/bin/true", ["true"])
    return pid


STARTS = {
    "subprocess": opened,
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], os.environ),
    "posix_spawn of sh": lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "/bin/true; exit 0"], os.environ),
    "fork and exec": forked,
}


def after_use(megabytes):
    held = bytearray(megabytes << 20)
    for place in range(0, len(held), 4096):
        held[place] = 1
    return {name: peak(start) for name, start in STARTS.items()}
PYTHON
cat >"$work/launch.py" <<'PYTHON'
import platform
import sys

from children import after_use
from loky import ProcessPoolExecutor

if __name__ == "__main__":
    print(f"Python {platform.python_version()}, Linux {platform.release()}: MB that wait4 reports for /bin/true")
    small = after_use(0)
    print("started by a small process:", small)
    with ProcessPoolExecutor(1) as pool:
        large = pool.submit(after_use, 300).result()
    print("by a worker of loky that holds 300 MB:", large)
    sys.exit(not (max(small.values()) < 100 and min(large.values()) >= 300))
PYTHON
cd "$work"
PYTHONPATH=$work venv/bin/python launch.py
