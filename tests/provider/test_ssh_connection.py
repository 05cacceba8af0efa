"""How a connection of the SSH provider is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.remote.protocol import SshTarget
from airflow_provider_air_executor.ssh_connection import ssh_target

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGKKuJhUnGKQMhnTm7tP3wcLh5mLHm1Hd8yTrbeYbsBn"


def connection(extra: dict[str, Any] | None = None, **fields: Any) -> Connection:
    return Connection(
        conn_id="there", conn_type="ssh", **{"host": "login1", **fields}, extra=json.dumps(extra) if extra else None
    )


def test_its_fields() -> None:
    extra = {
        "private_key": "text",
        "private_key_passphrase": "open it",
        "host_key": HOST_KEY,
        "host_proxy_cmd": "nc %h %p",
        "conn_timeout": 10,
    }
    found = ssh_target(connection(extra, port=2222, login="me", password="secret"))
    assert found == SshTarget(
        "login1", 2222, "me", "secret", None, "text", "open it", None, HOST_KEY, proxy_command="nc %h %p"
    )
    assert "secret" not in repr(found)


def test_what_is_not_given_is_found_elsewhere() -> None:
    assert ssh_target(connection()) == SshTarget("login1")
    assert ssh_target(connection({"key_file": ""}, login="", password="")) == SshTarget("login1")


@pytest.mark.parametrize(
    ("extra", "is_checked"),
    [
        ({}, True),
        ({"allow_host_key_change": "true"}, True),
        ({"no_host_key_check": "false"}, True),
        ({"no_host_key_check": True}, False),
        ({"no_host_key_check": "true"}, False),
        ({"ignore_hostkey_verification": True}, False),
        ({"no_host_key_check": False, "ignore_hostkey_verification": True}, True),
    ],
)
def test_the_host_key_is_checked_unless_it_is_said_that_it_is_not(extra: dict[str, Any], is_checked: bool) -> None:
    assert ssh_target(connection(extra)).check_host_key is is_checked


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"key_file": 3}, "key_file of the SSH connection 'there' must be a text"),
        ({"no_host_key_check": "maybe"}, "no_host_key_check of the SSH connection 'there' must be true or false"),
        ({"key_file": "a", "private_key": "b"}, "has both a key_file and a private_key"),
        ({"host_key": HOST_KEY, "no_host_key_check": True}, "has a host_key, and no_host_key_check says"),
    ],
)
def test_what_is_not_valid(extra: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        ssh_target(connection(extra))


def test_no_host() -> None:
    with pytest.raises(SettingsError, match="the SSH connection 'there' has no host"):
        ssh_target(connection(host=None))


def test_the_provider_is_not_loaded() -> None:
    """It takes long to import, and need not be installed where only files are used."""
    import subprocess
    import sys

    code = "import sys, airflow_provider_air_executor.ssh_connection; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"paramiko", "asyncssh", "airflow.providers.ssh"} & set(loaded)
