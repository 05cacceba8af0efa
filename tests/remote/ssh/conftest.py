"""A machine that is reached by SSH, with a small server in the place of Air-Executor's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from airflow_provider_air_executor.remote import ssh
from airflow_provider_air_executor.remote.protocol import SshTarget
from airflow_provider_air_executor.remote.ssh import Tunnel, tunnel_to
from tests.support.processes import kill, with_environment
from tests.support.sshd import Sshd, shell_command

SERVER = """
import http.server, json, os, socket, subprocess, sys, threading

where = os.path.join(os.environ["OTHER_MACHINE"], "server.sock")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        said = b"x" * int(self.path[1:]) if self.path[1:].isdecimal() else str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    def do_POST(self):
        said = str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    def address_string(self):
        return "unix"
    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    request_queue_size = 100
    def server_bind(self):
        socket.socket.bind(self.socket, self.server_address)

def is_there():
    with socket.socket(socket.AF_UNIX) as found:
        return found.connect_ex(where) == 0

if "--ensure" in sys.argv:
    if not is_there():
        if os.path.exists(where):
            os.unlink(where)
        begun = subprocess.Popen([sys.executable, __file__], start_new_session=True, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        begun.stdout.readline()
    if "--stdio" not in sys.argv:
        print(json.dumps({"socket": where, "version": "1", "protocol": 1, "arguments": sys.argv[1:]}))
if "--stdio" in sys.argv:
    with socket.socket(socket.AF_UNIX) as found:
        found.connect(where)
        def back():
            while data := found.recv(65536):
                os.write(1, data)
            os._exit(0)
        threading.Thread(target=back, daemon=True).start()
        while data := os.read(0, 65536):
            found.sendall(data)
elif "--ensure" not in sys.argv:
    server = Server(where, Handler)
    print("ready", flush=True)
    os.dup2(2, 1)
    server.serve_forever()
"""


class OtherMachine:
    """A machine with an SSH server, and a command ``air-executor`` there."""

    def __init__(self, sshd: Sshd, directory: Path) -> None:
        self.sshd = sshd
        self._directory = directory
        (directory / "server.py").write_text(SERVER)
        script = f'exec {sys.executable} {directory / "server.py"} "$@"'
        self.command = str(shell_command(directory, "air executor", script))

    def target(self, **other: object) -> SshTarget:
        """How it is reached."""
        sshd = self.sshd
        target = SshTarget(sshd.host, sshd.port, sshd.user, key_file=str(sshd.key), known_hosts=str(sshd.known_hosts))
        return target._replace(**other)

    def tunnel(self, *, command: str | None = None, **other: object) -> Tunnel:
        """The way to it."""
        return tunnel_to(self.target(**other), command=command or f"'{self.command}'", base_path="/data/it's")

    def script(self, script: str) -> str:
        """A command there that does something else."""
        return f"'{shell_command(self._directory, 'other', script)}'"

    def kill_server(self) -> None:
        """Kill the server behind sshd."""
        kill(with_environment(f"OTHER_MACHINE={self._directory}"))

    def sockets(self) -> list[Path]:
        """What tunnels of this test have left."""
        return list(Path(self._directory).glob("air-executor-ssh-*"))


def get(tunnel: Tunnel, path: str = "/") -> str:
    """Ask the server for something, by a connection of its own."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=tunnel.socket()), timeout=60) as client:
        return client.get(f"http://server{path}").text


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherMachine]:
    monkeypatch.setenv("HOME", str(tmp_path))  # whoever runs the tests may have an ~/.ssh
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    options: tuple[str, ...] = ()
    with Sshd(tmp_path / "sshd", environment={"OTHER_MACHINE": str(tmp_path)}, options=options) as sshd:
        found = OtherMachine(sshd, tmp_path)
        yield found
        ssh.close_all()
        found.kill_server()
