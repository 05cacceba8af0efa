#!/usr/bin/env bash
# asyncio before Python 3.11.4: a connection that is paused in connection_made() delivers data all the same.
#
# Expected: no data before resume_reading(), as the documentation of pause_reading() says, also for a protocol that pauses
# in connection_made() until it knows where the data is to go.
# Seen with Python 3.11.2 of Debian 12: is_reading() says False, and data_received() is called. The transport begins to
# read in a callback that comes after connection_made() and does not look. A pause by call_soon() comes after that one.
# Here: a tunnel lost what a client sent before the other end was connected (remote/ssh/forwarding.py), so that `--ssh`
# hung on Debian 12, and on no newer Python.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for name in python3.11-minimal libpython3.11-minimal libpython3.11-stdlib; do
  apt-get -o APT::Sandbox::User=root download -qq "$name=3.11.2-*"
done
for package in ./*.deb; do dpkg-deb -x "$package" root; done
cat >paused.py <<'END'
import asyncio
import sys


class Paused(asyncio.Protocol):
    def __init__(self, when):
        self.when, self.got = when, []

    def connection_made(self, transport):
        if self.when == "at once":
            transport.pause_reading()
        else:
            asyncio.get_running_loop().call_soon(transport.pause_reading)
        self.transport = transport

    def data_received(self, data):
        self.got.append(f"{data.decode()} while is_reading() is {self.transport.is_reading()}")


async def main():
    print(sys.version.split()[0])
    for when in ("at once", "by call_soon"):
        made = []
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        server.close()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: made.append(Paused(when)) or made[0], "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        await asyncio.sleep(0.5)
        print(f"paused {when}:", made[0].got)
        writer.close()
        server.close()


asyncio.run(main())
END
PYTHONHOME=$work/root/usr "$work/root/usr/bin/python3.11" paused.py | tee seen
grep -qx "paused at once: \['hello while is_reading() is False'\]" seen
grep -qx "paused by call_soon: \[\]" seen
