"""Files that are attached to a job reach its Pods, on a real cluster of two nodes, and are nowhere else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import attachments, inbox
from airflow_provider_air_executor.jobs.store import JobStore
from tests.engines.contract import Engine
from tests.engines.test_kubernetes import OPTIONS, config, pod_of, running
from tests.support.jobs import ended, only_task, read_log, task
from tests.support.kubernetes_cluster import KubernetesCluster, missing
from tests.support.managers import Managers
from tests.support.waiting import until, wait_until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(missing()), reason=f"not there: {', '.join(missing())}; see make kubernetes-build"),
]

NOTE = "note.txt"
PRINTS = f"sha256sum <$AIR_EXECUTOR_ATTACHED/{NOTE}; echo begun"
KILLS_ITSELF = """
import os, signal
from airflow_provider_air_executor.engines.kubernetes import {module}
async def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{method} = end
"""


@pytest.fixture
def engine(kubernetes: KubernetesCluster) -> Iterator[Engine]:
    yield Engine("kubernetes", config=config(), environment=kubernetes.environment)
    kubernetes.cancel_all()


@pytest.fixture
def note() -> str:
    """The content of the attached file, which must be nowhere else."""
    return f"secret-{secrets.token_hex(20)}"


def submit(store: JobStore, note: str, line: str = PRINTS, *, name: str = "j", **options: Any) -> None:
    """Submit a job whose one task needs the note."""
    kubernetes = {"attached_files": [NOTE], **options}
    store.submit(name, [task("a", line, kubernetes=kubernetes)], attached={NOTE: note.encode()})


def printed(note: str) -> str:
    """The line of :data:`PRINTS`."""
    return f"{hashlib.sha256(note.encode()).hexdigest()}  -\n"


def secret_of(cluster: KubernetesCluster, name: str = "j") -> dict[str, Any] | None:
    """The Secret of the Pod of a job."""
    found = json.loads(cluster.kubectl("get", "secrets", "-l", f"air-executor/job={name}", "-o", "json"))["items"]
    assert len(found) < 2, found
    return dict(found[0]) if found else None


def content_of(cluster: KubernetesCluster) -> str | None:
    """The note as the Secret has it; None if there is no Secret."""
    found = secret_of(cluster)
    return None if found is None else base64.b64decode(found["data"][NOTE]).decode()


def test_the_file_is_for_the_task_alone(
    store: JobStore, managers: Managers, engine: Engine, kubernetes: KubernetesCluster, tmp_path: Path, note: str
) -> None:
    """And once that has begun, the file is neither in the job nor in the cluster."""
    engine.prepare(managers)
    manager = managers.start()
    shown = "cd $AIR_EXECUTOR_ATTACHED; stat -c '%a %n' . *; rm note.txt; env"
    submit(store, note, f"{PRINTS}; {shown}; {until(tmp_path / 'go')}")
    running(store)
    path = store.paths("j").attached(NOTE)
    wait_until(lambda: not path.exists(), what="it is removed from the job")
    wait_until(lambda: content_of(kubernetes) == "", what="the Secret is emptied", interval=0.2)
    pod, secret = pod_of(kubernetes), secret_of(kubernetes)
    assert secret is not None
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", pod["metadata"]["name"], pod["metadata"]["uid"])
    (handle,) = store.paths("j").runs.glob("*.on-kubernetes")
    everywhere = [
        kubernetes.kubectl("get", "pods,events,secrets,configmaps", "-o", "json"),
        kubernetes.kubectl("describe", "pods,secrets"),
        kubernetes.kubectl("logs", pod["metadata"]["name"]),
        handle.read_text(),
        *(file.read_text() for file in store.paths("j").directory.rglob("*") if file.is_file()),
    ]
    (tmp_path / "go").touch()
    assert only_task(store).status == "completed", read_log(store, "j", "a").text
    wait_until(lambda: secret_of(kubernetes) is None, what="the Secret goes with its Pod", interval=0.5)
    manager.kill()
    everywhere.append(manager.communicate()[1])
    log = read_log(store, "j", "a").text
    assert log.startswith(f"{printed(note)}begun\n700 .\n400 {NOTE}\n"), log
    hidden = {note, base64.b64encode(note.encode()).decode(), json.dumps(note)}
    for text in (*everywhere, log):
        assert not [word for word in hidden if word in text]


@pytest.mark.parametrize(
    "security",
    [{"runAsUser": 1000}, {"runAsUser": 1000, "fsGroup": 2000}, {"runAsUser": 0, "fsGroup": 2000}],
    ids=["user", "user-and-group", "root-and-group"],
)
def test_as_any_user(store: JobStore, managers: Managers, engine: Engine, note: str, security: dict[str, int]) -> None:
    engine.prepare(managers)
    managers.start()
    template = {"spec": {**OPTIONS["pod_template"]["spec"], "securityContext": security}}
    submit(store, note, f"{PRINTS}; id -u", pod_template=template)
    assert only_task(store).status == "completed", only_task(store).error
    assert read_log(store, "j", "a").text == f"{printed(note)}begun\n{security['runAsUser']}\n"


def test_a_file_that_is_replaced_while_the_pod_waits(
    store: JobStore, managers: Managers, engine: Engine, kubernetes: KubernetesCluster, note: str
) -> None:
    engine.config = config(autoscaled=True)
    engine.prepare(managers)
    managers.start()
    submit(store, "old", node_selector={"air-executor/test": "attached"})
    wait_until(lambda: content_of(kubernetes) == "old", what="the Secret is there", interval=0.2)
    assert attachments.replace(store.paths("j"), NOTE, note.encode())
    wait_until(lambda: content_of(kubernetes) == note, what="the Secret follows", interval=0.5)
    kubernetes.kubectl("label", "node", "n2", "air-executor/test=attached")
    try:
        assert only_task(store).status == "completed"
    finally:
        kubernetes.kubectl("label", "node", "n2", "air-executor/test-")
    assert read_log(store, "j", "a").text == f"{printed(note)}begun\n"


def test_the_manager_is_killed_before_the_secret_is_created(
    store: JobStore, managers: Managers, engine: Engine, kubernetes: KubernetesCluster, note: str
) -> None:
    engine.prepare(managers)
    managers.patch = KILLS_ITSELF.format(module="client", method="KubernetesClient.create_secret")
    manager = managers.start()
    submit(store, note)
    assert manager.wait() == -9
    assert pod_of(kubernetes)
    assert secret_of(kubernetes) is None
    managers.patch = ""
    managers.start()
    assert only_task(store).status == "completed"
    assert (store.get_tasks("j")[0].attempt, read_log(store, "j", "a").text) == (1, f"{printed(note)}begun\n")


def test_the_manager_is_killed_before_the_secret_is_emptied(
    store: JobStore, managers: Managers, engine: Engine, kubernetes: KubernetesCluster, tmp_path: Path, note: str
) -> None:
    engine.prepare(managers)
    managers.patch = KILLS_ITSELF.format(module="log_reader", method="LogReader.has_output")
    manager = managers.start()
    submit(store, note, f"{PRINTS} >{tmp_path}/begun; {until(tmp_path / 'go')}")
    assert manager.wait() == -9
    wait_until((tmp_path / "begun").exists, what="the task runs")
    assert store.paths("j").attached(NOTE).exists()
    assert content_of(kubernetes) == note
    managers.patch = ""
    managers.start()
    wait_until(lambda: content_of(kubernetes) == "", what="the Secret is emptied", interval=0.2)
    assert not store.paths("j").attached(NOTE).exists()
    (tmp_path / "go").touch()
    assert only_task(store).status == "completed"


def test_files_that_a_pod_cannot_get(store: JobStore, managers: Managers, engine: Engine) -> None:
    engine.prepare(managers)
    managers.start()
    large = {"large": b"x" * (1 << 20), "more": b"x", "state": b"x"}
    for number, names in enumerate((["large", "more"], ["missing"], ["state.json"], ["../j0/more"])):
        store.submit(f"j{number}", [task("a", kubernetes={"attached_files": names})], attached=large)
    errors = [only_task(store, f"j{number}") for number in range(4)]
    assert [task.reason for task in errors] == ["spawn"] * 4
    assert "have 1048577 bytes, but a Secret of Kubernetes can have 1048576" in (errors[0].error or "")
    assert "the file 'missing' is not attached to its job" in (errors[1].error or "")
    assert all("cannot be the name of an attached file" in (task.error or "") for task in errors[2:])


def test_without_the_right_to_create_secrets(
    store: JobStore, managers: Managers, engine: Engine, kubernetes: KubernetesCluster, tmp_path: Path, note: str
) -> None:
    kubernetes.kubectl("create", "namespace", "no-secrets")
    for words in (
        ("serviceaccount", "manager"),
        ("role", "manager", "--verb=create,get,list,watch,delete", "--resource=pods"),
        ("rolebinding", "manager", "--role=manager", "--serviceaccount=no-secrets:manager"),
    ):
        kubernetes.kubectl("--namespace", "no-secrets", "create", *words)
    token = wait_until(lambda: kubernetes.token_of("manager", "no-secrets"), what="it has a token")
    wait_until(lambda: kubernetes.token_of("default", "no-secrets"), what="Pods can be created there")
    path = tmp_path / "kubeconfig"
    kubernetes.write_kubeconfig(path, token, "no-secrets")
    engine.config = config(kubeconfig=str(path))
    engine.prepare(managers)
    managers.start()
    submit(store, note)
    done = only_task(store)
    kubernetes.kubectl("delete", "namespace", "no-secrets", "--wait=false")
    assert done.reason == "spawn"
    assert re.search('cannot get the files attached to its job.*cannot create resource "secrets"', done.error or "")
    assert note not in (done.error or "")


def test_cancelled_while_it_waits(
    store: JobStore, managers: Managers, engine: Engine, kubernetes: KubernetesCluster, note: str
) -> None:
    engine.config = config(autoscaled=True)
    engine.prepare(managers)
    managers.start()
    submit(store, note, node_selector={"air-executor/test": "never"})
    wait_until(lambda: content_of(kubernetes) == note, what="the Secret is there", interval=0.2)
    inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    wait_until(lambda: secret_of(kubernetes) is None, what="the Secret is gone", interval=0.5)


def test_tasks_with_attached_files_share_no_pod(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path, note: str
) -> None:
    """A task with attached files has a Pod of its own, also where others share theirs."""
    engine.config = config(tasks_per_submission=10)
    engine.prepare(managers)
    managers.start()
    tasks = [task(f"t{n}", PRINTS, kubernetes={"attached_files": [f"note{n}"]}) for n in (1, 2)]
    tasks = [{**each, "bash": each["bash"].replace(NOTE, f"note{n}")} for n, each in enumerate(tasks, 1)]
    store.submit("j", tasks, max_parallel_tasks=2, attached={"note1": note.encode(), "note2": b"two"})
    assert stat.S_IMODE(store.paths("j").attached("note1").stat().st_mode) == 0o600
    assert ended(store, "j").state == "completed"
    logs = [read_log(store, "j", f"t{n}").text for n in (1, 2)]
    assert logs == [f"{printed(note)}begun\n", f"{printed('two')}begun\n"]
    assert len({each.where for each in store.get_tasks("j")}) == 2
