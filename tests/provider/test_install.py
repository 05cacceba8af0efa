"""The files of ``docs/install``: what they name exists, and they fit together."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_air_executor.manager.cli import main

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "docs" / "install"
USER = 50000  # of Airflow's images


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INSTALL / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INSTALL / "helm-values.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def manager() -> dict[str, Any]:
    """The objects of the manager in a cluster, by their kind."""
    documents = yaml.safe_load_all((ROOT / "docs" / "kubernetes" / "manager.yaml").read_text())
    return {document["kind"]: document for document in documents}


def base_path_of(connection: str) -> str:
    found: str = json.loads(connection)["extra"]["base_path"]
    return found


def is_accepted(words: list[str]) -> None:
    """These are a command of ours, with options that it has."""
    assert words[0].rpartition("/")[2] == "air-executor"
    command = main.commands[words[1]]
    command.make_context(words[1], words[2:], resilient_parsing=False)


def test_what_the_services_name_is_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for other in service.get("depends_on", {}):
            assert other in compose["services"], name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or source.startswith("./"), f"{name}: {volume}"
        assert "command" in service or name == "postgres", name


def test_all_parts_of_an_airflow_are_there(compose: dict[str, Any]) -> None:
    commands = {name: service.get("command") for name, service in compose["services"].items()}
    for component in ("api-server", "scheduler", "dag-processor", "triggerer"):
        assert commands[component] == ["airflow", component]
    assert commands["migrate"] == ["airflow", "db", "migrate"]


def test_one_base_path_is_one_user(compose: dict[str, Any]) -> None:
    services = compose["services"]
    path = services["manager"]["environment"]["AIR_EXECUTOR_BASE_PATH"]
    for name, service in services.items():
        if name in ("postgres", "prepare"):
            continue
        assert service["user"] == f"{USER}:0", name
        assert f"jobs:{path}" in service["volumes"], name
        if name != "manager":
            assert base_path_of(service["environment"]["AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT"]) == path, name
    chown, owner, *volumes = services["prepare"]["entrypoint"]
    assert (chown, owner) == ("chown", f"{USER}:0")
    assert path in volumes


def test_the_manager_has_none_of_airflows_settings(compose: dict[str, Any]) -> None:
    service = compose["services"]["manager"]
    assert not [name for name in service["environment"] if name.startswith("AIRFLOW")]
    assert service["init"] is True
    is_accepted([*service["entrypoint"], *service["command"]])


def test_no_secret_is_written_down(compose: dict[str, Any]) -> None:
    text = (INSTALL / "compose.yaml").read_text()
    for name in ("POSTGRES_PASSWORD", "JWT_SECRET", "SECRET_KEY", "FERNET_KEY", "AIRFLOW_IMAGE"):
        assert re.search(rf"\$\{{{name}:\?", text), f"{name} must be given"
        assert name in (ROOT / "docs" / "install.md").read_text()


def test_the_values_fit_the_manager_in_the_cluster(values: dict[str, Any], manager: dict[str, Any]) -> None:
    (variable,) = values["env"]
    (mount,) = values["volumeMounts"]
    (volume,) = values["volumes"]
    pod = manager["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    path = container["command"][container["command"].index("--base-path") + 1]
    assert variable["name"] == "AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT"
    assert base_path_of(variable["value"]) == mount["mountPath"] == path
    assert mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == manager["PersistentVolumeClaim"]["metadata"]["name"]
    assert "ReadWriteMany" in manager["PersistentVolumeClaim"]["spec"]["accessModes"]
    assert values["uid"] == pod["securityContext"]["runAsUser"] == USER
    is_accepted([*container["command"], *container["args"]])


def test_the_unit_keeps_tasks_when_the_manager_is_restarted() -> None:
    text = (INSTALL / "air-executor.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert settings["KillMode"] == "process"
    assert settings["Environment"] == "AIR_EXECUTOR_BASE_PATH=/var/lib/air-executor"
    assert settings["StateDirectory"] == "air-executor"
    is_accepted(shlex.split(settings["ExecStart"]))
    assert base_path_of_the_page() == "/var/lib/air-executor"


def base_path_of_the_page() -> str:
    found = re.search(r"--conn-extra '(\{.*\})'", (ROOT / "docs" / "install.md").read_text())
    assert found is not None
    base_path: str = json.loads(found[1])["base_path"]
    return base_path


def test_the_unit_for_other_machines_keeps_tasks_and_serves_by_tls() -> None:
    text = (INSTALL / "air-executor-remote.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert settings["KillMode"] == "process"
    assert "PrivateTmp" not in settings  # it would be removed while tasks go on
    words = shlex.split(settings["ExecStart"])
    is_accepted(words)
    assert {"--listen", "--tls-cert", "--tls-key"} <= set(words)
    environment = dict(line.split("=") for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE))
    assert environment["AIR_EXECUTOR_BASE_PATH"] == f"/var/lib/{settings['StateDirectory']}"
    assert environment["AIR_EXECUTOR_CACHE"] == f"/var/cache/{settings['CacheDirectory']}"
