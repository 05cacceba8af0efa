"""The server behind nginx, with the configuration that the documentation has."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.audit import FILE as AUDIT
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.servers import Servers
from tests.support.waiting import PATIENCE, wait_until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
_AROUND = """daemon off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
{text}
}}
"""


@pytest.fixture
def proxied(store: JobStore, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client by way of nginx."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    servers = Servers(store)
    servers.start("--listen", "127.0.0.1:0", "--trusted-proxy", "127.0.0.1")
    info = servers.info()
    assert info is not None
    (tmp_path / "tls").mkdir()
    authority = Authority(tmp_path / "tls")
    files, port = authority.issue(), free_port()
    [text] = re.findall(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for before, after in (
        ("server 127.0.0.1:8080", f"server {info.listen[0].removeprefix('http://')}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/nginx/jobs.pem", str(files.certificate)),
        ("/etc/nginx/jobs.key", str(files.key)),
    ):
        assert before in text
        text = text.replace(before, after)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(_AROUND.format(directory=tmp_path, text=text))
    token = Tokens(store.base_path).create("t", Scope.SUBMIT)
    with contextlib.ExitStack() as stack:
        stack.callback(servers.close)
        process = stack.enter_context(subprocess.Popen([nginx, "-c", str(configuration), "-p", str(tmp_path)]))
        stack.callback(process.terminate)
        client = stack.enter_context(
            httpx.Client(
                base_url=f"https://localhost:{port}/v1",
                verify=ssl.create_default_context(cafile=str(authority.path)),
                headers={"Authorization": f"Bearer {token}"},
                timeout=PATIENCE,
                trust_env=False,
            )
        )

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return client.get("/health").is_success
            return False

        wait_until(answers, what="nginx answers")
        yield client


def test_jobs_and_streams_pass_through_nginx(proxied: httpx.Client, store: JobStore):
    assert proxied.get("/hello").json()["token"]["name"] == "t"
    assert proxied.get("/hello", headers={"Authorization": "Bearer x"}).status_code == 401
    with proxied.stream("GET", "/changes", headers={"Accept": "text/event-stream"}) as changes:
        lines = changes.iter_lines()
        assert next(lines).startswith(":"), "at once, and not when a buffer is full"
        long = {"name": "long", "tasks": [f"echo {'x' * 100_000}"] * 100}
        assert proxied.post("/jobs", json=long).status_code == 201
        wait_until(lambda: '"long"' in next(lines), what="the change arrives", interval=0.001)
    assert proxied.get("/records/long/tasks").text.count("\n") == 100


def test_the_audit_log_has_the_address_of_the_client(proxied: httpx.Client, store: JobStore):
    spoofed = {"X-Forwarded-For": "192.0.2.7", "Forwarded": "for=192.0.2.7"}
    assert proxied.post("/jobs", json={"name": "a", "tasks": ["true"]}, headers=spoofed).status_code == 201
    [line] = (store.base_path / AUDIT).read_text().splitlines()
    assert json.loads(line)["address"] in ("127.0.0.1", "::1"), "nginx drops what the client says of itself"
    assert os.path.exists(store.paths("a").state)
