#!/usr/bin/env bash
# Python's socket.recv_fds and socket.send_fds have a parameter `flags`, and take no notice of it.
#
# Expected: MSG_CMSG_CLOEXEC keeps descriptors that are received from programs that are started later, as PEP 446 does for
# all that Python opens itself; MSG_DONTWAIT raises BlockingIOError where there is nothing to receive, or no room to send.
# Seen with Python 3.11 to 3.13: descriptors are inheritable whatever the flags say, and both functions wait. recv_fds
# uses the name of its parameter for what it returns, so nothing looks unused.
# Here: each program that a task started would have had the sockets that join the task to its supervisor
# (system/handover.py calls recvmsg and sendmsg itself).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/flags.py" <<'PYTHON'
import array
import os
import signal
import socket
import sys

ours, theirs = socket.socketpair()
socket.send_fds(ours, [b"x"], [0])
_, descriptors, _, _ = socket.recv_fds(theirs, 10, 1, socket.MSG_CMSG_CLOEXEC)
by_recv_fds = os.get_inheritable(descriptors[0])
socket.send_fds(ours, [b"x"], [0])
_, ancillary, _, _ = theirs.recvmsg(10, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
by_recvmsg = os.get_inheritable(array.array("i", ancillary[0][2])[0])


class Waited(Exception):
    pass


def interrupt(*_):
    raise Waited


signal.signal(signal.SIGALRM, interrupt)


def outcome(call):
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        call()
    except (BlockingIOError, Waited) as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "it returned"


waits = outcome(lambda: socket.recv_fds(theirs, 10, 1, socket.MSG_DONTWAIT))
plain = outcome(lambda: theirs.recvmsg(10, socket.CMSG_LEN(4), socket.MSG_DONTWAIT))
print(f"Python {sys.version.split()[0]}: inheritable after recv_fds: {by_recv_fds}, after recvmsg: {by_recvmsg}; "
      f"nothing to receive: recv_fds: {waits}, recvmsg: {plain}")
sys.exit((by_recv_fds, by_recvmsg, waits, plain) != (True, False, "Waited", "BlockingIOError"))
PYTHON
python3 "$work/flags.py"
