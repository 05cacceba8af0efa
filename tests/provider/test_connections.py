"""What a connection says: where the manager is, and how it is reached."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.remote.protocol import Target

TOKEN = "aex_a-secret-word"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a connection with some fields is taken for."""

    def target(**fields: Any) -> Any:
        conn = {"conn_type": "air_executor", **fields}
        monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps(conn))
        return AirExecutorHook().location

    return target


WHOSE = "connection 'air_executor_default'"


def test_a_host_is_reached_by_https(said: Any) -> None:
    extra = {"ca": "/etc/ca.pem", "client_cert": "/etc/cert.pem", "client_key": "/etc/key.pem"}
    assert said(host="jobs.example.org", port=8443, password=TOKEN, extra=extra) == Target(
        url="https://jobs.example.org:8443",
        token=TOKEN,
        ca="/etc/ca.pem",
        client_cert="/etc/cert.pem",
        client_key="/etc/key.pem",
        name=WHOSE,
    )


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "h"}, "https://h"),
        ({"host": "h", "schema": "https", "port": 1}, "https://h:1"),
        ({"host": "localhost", "schema": "http", "port": 8080}, "http://localhost:8080"),
        ({"host": "127.0.0.7", "schema": "http"}, "http://127.0.0.7"),
        ({"host": "::1", "schema": "http", "port": 8080}, "http://[::1]:8080"),
        ({"host": "[2001:db8::1]", "port": 8080}, "https://[2001:db8::1]:8080"),
        ({"host": "https://proxy.example.org:444/jobs/"}, "https://proxy.example.org:444/jobs"),
        ({"host": "h", "schema": "http", "extra": {"insecure_plain_text": True}}, "http://h"),
        ({"host": "h", "schema": "http", "extra": {"insecure_plain_text": "true"}}, "http://h"),
    ],
)
def test_the_address(said: Any, fields: dict[str, Any], url: str) -> None:
    assert said(**fields).url == url


def test_a_connection_that_is_a_uri(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"air-executor://:{TOKEN}@jobs.example.org:8443/https?ca=%2Fetc%2Fca.pem&embedded=true"
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", uri)
    found = AirExecutorHook("other").location
    assert isinstance(found, Target)
    assert (found.url, found.token, found.ca) == ("https://jobs.example.org:8443", TOKEN, "/etc/ca.pem")
    assert found.embedded


@pytest.mark.parametrize("host", ["/run/air.sock", "unix:///run/air.sock"])
def test_a_socket_of_this_machine(said: Any, host: str) -> None:
    assert said(host=host) == Target(socket="/run/air.sock", name=WHOSE)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"host": "h", "schema": "http"}, "http is not encrypted"),
        ({"host": "10.0.0.1", "schema": "http"}, "http is not encrypted"),
        ({"host": "http://h"}, "http is not encrypted"),
        ({"host": "h", "schema": "ftp"}, "must be https or http, not 'ftp'"),
        ({"host": "ftp://h"}, "must be https://host:port"),
        ({"host": "https://:8443"}, "must be https://host:port"),
        ({"host": "https://h:port"}, "is not valid"),
        ({"host": "https://h?a=b"}, "must not have a query"),
        ({"host": f"https://me:{TOKEN}@h"}, "must not have a user or a password"),
        ({"host": "unix://run/air.sock"}, "an absolute path after unix://"),
        ({"host": "h", "extra": {"ca": "ca.pem"}}, "ca of .* must be the absolute path of a file, not 'ca.pem'"),
        ({"host": "h", "extra": {"ca": 1}}, "ca of .* must be a text"),
        ({"host": "h", "extra": {"embedded": "perhaps"}}, "embedded of .* must be true or false"),
    ],
)
def test_what_is_not_valid_is_said_with_the_name_of_the_connection(said: Any, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        said(password=TOKEN, **fields)
    assert WHOSE in str(refused.value)
    assert TOKEN not in str(refused.value)
    ok, message = AirExecutorHook().test_connection()
    assert not ok
    assert str(refused.value) == message


def test_there_are_no_files_here(said: Any) -> None:
    said(host="jobs.example.org", password=TOKEN)
    hook = AirExecutorHook()
    assert hook.jobs.where == "https://jobs.example.org"
    assert hook.for_trigger() == {"air_executor_conn_id": "air_executor_default"}, "a token is never serialized"
    with pytest.raises(SettingsError, match=f"the jobs of {WHOSE} are on another machine"):
        _ = hook.store


def test_all_hooks_of_a_process_share_the_connections_to_a_server(said: Any) -> None:
    said(host="jobs.example.org", password=TOKEN)
    one, other = AirExecutorHook().jobs, AirExecutorHook().patient(0)
    assert one._link.transport is other._link.transport  # type: ignore[attr-defined]


def test_a_machine_that_is_reached_by_ssh(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_LOGIN_NODE",
        json.dumps({"conn_type": "ssh", "host": "login.example.org", "login": "me", "port": 2222}),
    )
    extra = {"ssh_conn_id": "login_node", "command": "/opt/air-executor.pyz", "base_path": "~/jobs", "embedded": True}
    found = said(extra=extra)
    assert isinstance(found, Target)
    assert found.ssh is not None
    assert (found.ssh.host, found.ssh.port, found.ssh.username) == ("login.example.org", 2222, "me")
    assert (found.command, found.base_path, found.embedded) == ("/opt/air-executor.pyz", "~/jobs", True)
    assert (found.url, found.socket, found.name) == (None, None, WHOSE)


def test_a_host_and_an_ssh_connection_contradict_each_other(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LOGIN_NODE", json.dumps({"conn_type": "ssh", "host": "login.example.org"}))
    with pytest.raises(ValueError, match="one of them says where the manager is"):
        said(host="jobs.example.org", extra={"ssh_conn_id": "login_node"})
