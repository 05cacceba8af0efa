#!/usr/bin/env bash
# On Linux, a process is seen to close its sockets before its orphans have their new parent.
#
# Expected: who is a child subreaper (PR_SET_CHILD_SUBREAPER) and sees the end of file at the socket of a process that is
# ending may wait for the children which that leaves: the process is gone, so they are the subreaper's.
# Seen with Linux 6.18: in about half of 500 tries waitpid says ECHILD at that moment, "no such child", and finds the child
# a moment later. The kernel closes the files of a process (exit_files) before it finds other parents for its children
# (exit_notify), and on another processor the end of file arrives in between.
# Here: a supervisor whose zygote was killed took its running task for one whose end could not be known any more
# (Zygote._exit_code_of in zygote.py looks again as long as there is such a process).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/orphan.py" <<'PYTHON'
import ctypes
import os
import platform
import socket
import sys
import time

SUBREAPER, TRIES = 36, 500


def leave_an_orphan(told, kept):
    """Start a process that runs for a moment, say which one, and end."""
    child = os.fork()
    if child == 0:
        kept.close()
        os.close(told)
        time.sleep(0.05)
        os._exit(7)
    os.write(told, str(child).encode())
    time.sleep(0.001)
    os._exit(0)


ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
not_yet, codes = 0, set()
for _ in range(TRIES):
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        ours.close()
        leave_an_orphan(write, theirs)
    theirs.close()
    os.close(write)
    child = int(os.read(read, 20))
    os.close(read)
    assert ours.recv(1) == b""
    try:
        os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        not_yet += 1
    ours.close()
    os.waitpid(parent, 0)
    codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(f"Linux {platform.release()}: at the end of file, {not_yet} of {TRIES} orphans were not our children yet; "
      f"their exit codes came all the same: {codes}")
sys.exit(not (not_yet and codes == {7}))
PYTHON
python3 "$work/orphan.py"
