"""The commands of docs/remote.md, as they can be copied, and its connections."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from airflow.sdk import Connection

from airflow_provider_air_executor.connections import location_of
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote.protocol import SshTarget, Target
from airflow_provider_air_executor.server import presence
from tests.support.managers import CLI, Managers
from tests.support.waiting import wait_until

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "remote.md").read_text()
SSH = SshTarget("login.example.org", username="me", key_file="/opt/airflow/.ssh/id_ed25519")


def commands(beginning: str) -> str:
    """The block of commands that begins so."""
    found = next(block for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) if beginning in block)
    return re.sub(r"^ *\$ ", "", found, flags=re.MULTILINE)


def added(conn_id: str, *, extra: str) -> Connection:
    """The connection that an ``airflow connections add`` of the page adds."""
    block = next(
        block
        for block in re.findall(r"airflow connections add (?:[^$`]|\$(?! ))*", PAGE)
        if conn_id in block and extra in block
    )
    words = shlex.split(block.replace("\\\n", " "))
    given = {words[index][2:]: words[index + 1] for index in range(4, len(words), 2)}
    fields = {name.removeprefix("conn-"): value for name, value in given.items()}
    return Connection(
        conn_id=words[3],
        conn_type=fields["type"],
        host=fields.get("host"),
        port=int(fields["port"]) if "port" in fields else None,
        login=fields.get("login"),
        password=fields.get("password"),
        extra=fields["extra"],
    )


def target(connection: Connection) -> object:
    return location_of(connection, "it", "/base", lambda conn_id: SSH)


def test_the_certificate_is_one_that_clients_accept(tmp_path: Path, managers: Managers) -> None:
    script = commands("$ openssl").replace("jobs.example.org", "localhost")
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, capture_output=True)
    (flags,) = re.findall(
        r"^air-executor (manager --listen .*)$", commands("air-executor manager --listen"), re.MULTILINE
    )
    name, *options = shlex.split(flags.replace("0.0.0.0:8443", "127.0.0.1:0"))
    assert name == "manager"
    store: JobStore = managers.store
    managers.start(*(str(tmp_path / word) if word.startswith("server.") else word for word in options))
    info = wait_until(lambda: presence.running(store), what="the server answers")
    made = [*CLI, "token", "create", "airflow", "--scope", "submit", "--base-path", str(store.base_path)]
    token = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip()
    lines = commands("export AIR_EXECUTOR_URL").splitlines()
    values = {"https://jobs.example.org:8443": info.listen[0].replace("127.0.0.1", "localhost"), "aex_...": token}
    values["ca.pem"] = str(tmp_path / "ca.pem")
    for word, value in values.items():
        assert word in lines[0]
        lines[0] = lines[0].replace(word, value)
    script = "\n".join([lines[0], f"{shlex.join(CLI)} run -- echo done", f"{shlex.join(CLI)} status"])
    said = subprocess.run(
        ["bash", "-euc", script], check=True, capture_output=True, text=True, env=managers.environment
    ).stdout
    assert lines[1:] == ["air-executor run -- make report", "air-executor status"]
    assert "done" in said
    assert "completed" in said


def test_the_connection_is_the_same_in_each_form() -> None:
    expected = Target("https://jobs.example.org:8443", token="aex_...", ca="/opt/airflow/ca.pem", name="it")
    assert target(added("air_executor_default", extra='"ca"')) == expected
    texts = re.findall(r"AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT='([^']*)'", PAGE)
    assert len(texts) == 2
    for text in texts:
        is_json = text.startswith("{")
        read = Connection.from_json if is_json else Connection.from_uri
        assert target(read(text, conn_id="air_executor_default")) == expected


def test_the_connection_by_ssh_names_the_other_one() -> None:
    from airflow_provider_air_executor.ssh_connection import ssh_target

    ours, other = added("air_executor_default", extra="ssh_conn_id"), added("cluster", extra="key_file")
    assert json.loads(ours.extra or "")["ssh_conn_id"] == other.conn_id
    assert ssh_target(other) == SSH
    assert target(ours) == Target(ssh=SSH, command="~/bin/air-executor", embedded=True, name="it")


def test_the_connection_of_a_shared_directory_is_one_of_this_machine() -> None:
    assert target(added("air_executor_default", extra="base_path")) == ("/var/lib/air-executor", False)


@pytest.mark.parametrize("part", ["worker", "triggerer", "API server", "server", "manager", "machine of the manager"])
def test_it_says_what_happens_when_a_part_dies(part: str) -> None:
    assert f"| **{part}**" in PAGE
