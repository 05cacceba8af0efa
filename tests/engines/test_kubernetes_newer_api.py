"""The Kubernetes engine with an API server of a newer Kubernetes than the cluster has. Tests report as its kubelet.

A row of the matrix has that server, see ``tests/matrix``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_air_executor.engines.kubernetes import client as clients
from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt
from airflow_provider_air_executor.engines.kubernetes.client import ApiError, KubernetesClient, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.credentials import find_credentials
from airflow_provider_air_executor.engines.kubernetes.handles import Handles
from airflow_provider_air_executor.engines.kubernetes.manifest import Installation
from airflow_provider_air_executor.engines.kubernetes.options import EngineOptions
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.shared import EventQueue, Shared
from airflow_provider_air_executor.engines.kubernetes.watcher import Cleanup, Watcher
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.store import JobStore
from tests.engines.contract import Engine
from tests.support.jobs import ended, only_task, task
from tests.support.managers import Managers
from tests.support.newer_api_server import NewerApiServer, as_custom_resources, missing
from tests.support.waiting import PATIENCE, wait_until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        bool(missing()), reason=f"not there: {', '.join(missing())}; see make matrix ROW=kubernetes-*-api"
    ),
]

OURS, THEIRS = "air-executor/owner=me", {"air-executor/owner": "them"}
PATCH = """\
from airflow_provider_air_executor.engines.kubernetes.client import KubernetesClient
from tests.support.newer_api_server import as_custom_resources
KubernetesClient._request = as_custom_resources(KubernetesClient._request)
"""
CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


@pytest.fixture(scope="module")
def server() -> Iterator[NewerApiServer]:
    with contextlib.closing(NewerApiServer()) as found:
        yield found.start()


@pytest.fixture(autouse=True)
def namespace(server: NewerApiServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace of the test's own, in which clients find Pods."""
    server.wait_for_pods()
    monkeypatch.setattr(KubernetesClient, "_request", as_custom_resources(KubernetesClient._request))
    return f"n{secrets.token_hex(4)}"


def manifest(namespace: str, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    labels = {"air-executor/owner": "me", "air-executor/run": name} if labels is None else labels
    metadata = {"namespace": namespace, "name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "task"}]}}


def run(server: NewerApiServer, test: Callable[[KubernetesClient], Awaitable[None]]) -> None:
    async def within() -> None:
        api = KubernetesClient(find_credentials({}, kubeconfig=str(server.kubeconfig)))
        try:
            async with asyncio.timeout(PATIENCE):
                await test(api)
        finally:
            await api.close()

    asyncio.run(within())


async def refusal(request: Awaitable[object]) -> tuple[int, str]:
    """The status and the reason with which a request is refused."""
    with pytest.raises(ApiError) as error:
        await request
    return error.value.status, error.value.reason


async def changes(api: KubernetesClient, namespace: str, version: str, until: str = "") -> list[tuple[str, str]]:
    """What watches show: kinds of changes with the names of Pods, or the version of a bookmark.

    :param until: the last kind; another watch begins anew if one is over before.
    """
    while True:
        found = []
        async with contextlib.aclosing(api.watch_pods(namespace, OURS, version)) as shown:
            async for kind, pod in shown:
                metadata = pod["metadata"]
                found.append((kind, metadata["resourceVersion"] if kind == "BOOKMARK" else metadata["name"]))
                if kind == until:
                    return found


# -- requests ------------------------------------------------------------------------------------------------------


def test_a_pod_is_created_once_and_deleted_if_it_is_the_right_one(server: NewerApiServer, namespace: str) -> None:
    async def test(api: KubernetesClient) -> None:
        created = await api.create_pod(manifest(namespace, "p"))
        assert await refusal(api.create_pod(manifest(namespace, "p"))) == (409, "AlreadyExists")
        uid = created["metadata"]["uid"]
        assert (await api.get_pod(namespace, "p"))["metadata"]["uid"] == uid
        assert await refusal(api.delete_pod(namespace, "p", uid="another", grace=1)) == (409, "Conflict")
        await api.delete_pod(namespace, "p", uid=uid, grace=1)
        assert await refusal(api.delete_pod(namespace, "p", uid=uid)) == (404, "NotFound")
        assert await refusal(api.get_pod(namespace, "p")) == (404, "NotFound")

    run(server, test)


def test_many_pods_are_in_one_list(server: NewerApiServer, namespace: str) -> None:
    """A server lists by pages only if it is asked for one."""

    async def test(api: KubernetesClient) -> None:
        names = {f"p{number}" for number in range(600)}  # the pages of other clients have 500
        await asyncio.gather(*(api.create_pod(manifest(namespace, name)) for name in names))
        await api.create_pod(manifest(namespace, "theirs", THEIRS))
        listed, version = await api.list_pods(namespace, OURS)
        assert {pod["metadata"]["name"] for pod in listed} == names
        assert int(version) >= max(int(pod["metadata"]["resourceVersion"]) for pod in listed)

    run(server, test)


def test_a_watch_goes_on_where_a_list_or_another_watch_has_ended(
    server: NewerApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows each change once, and none of another installation; a bookmark is later than those, too."""
    monkeypatch.setattr(clients, "_WATCH_SECONDS", 4)  # a bookmark comes two seconds before the end

    async def test(api: KubernetesClient) -> None:
        pod = await api.create_pod(manifest(namespace, "before"))
        _, version = await api.list_pods(namespace, OURS)
        await api.create_pod(manifest(namespace, "p"))
        await asyncio.to_thread(server.report, pod, {"phase": "Running"})
        await api.delete_pod(namespace, "p")
        first = await changes(api, namespace, version, until="DELETED")
        assert first == [("ADDED", "p"), ("MODIFIED", "before"), ("DELETED", "p")]
        others = asyncio.create_task(change_others(api, namespace))
        found = await changes(api, namespace, version, until="BOOKMARK")
        others.cancel()
        *shown, (_, bookmark) = found
        assert shown == first
        theirs = await api.get_pod(namespace, "theirs0")
        assert int(bookmark) >= int(theirs["metadata"]["resourceVersion"])
        await api.create_pod(manifest(namespace, "later"))
        assert await changes(api, namespace, bookmark, until="ADDED") == [("ADDED", "later")]

    run(server, test)


async def change_others(api: KubernetesClient, namespace: str) -> None:
    """Create Pods of another installation: a server has no bookmark for those to whom nothing is new."""
    for number in itertools.count():
        await api.create_pod(manifest(namespace, f"theirs{number}", THEIRS))
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("flags", [(), ("--watch-cache=false",)], ids=["from memory", "from etcd"])
def test_a_version_that_is_too_old(server: NewerApiServer, namespace: str, flags: tuple[str, ...]) -> None:
    async def test(api: KubernetesClient) -> None:
        _, version = await api.list_pods(namespace, OURS)
        for name in ("one", "two"):
            await api.create_pod(manifest(namespace, name))
        server.stop_api_server()
        with pytest.raises(UnreachableError):
            await api.list_pods(namespace, OURS)
        await asyncio.to_thread(server.compact)
        await asyncio.to_thread(server.start_api_server, *flags)
        found = (429, "TooManyRequests")
        while found == (429, "TooManyRequests"):  # it has just started
            found = await refusal(changes(api, namespace, version))
        assert found == (410, "Expired")
        listed, _ = await api.list_pods(namespace, OURS)
        assert len(listed) == 2

    try:
        run(server, test)
    finally:
        server.stop_api_server()
        server.start_api_server()


def test_a_server_that_has_just_started(server: NewerApiServer, namespace: str) -> None:
    """Watches are refused until it has read what there is; that may pass."""

    async def test(api: KubernetesClient) -> None:
        await api.create_pod(manifest(namespace, "p"))
        _, version = await api.list_pods(namespace, OURS)
        found: ApiError | None = None
        while found is None:  # it may be quick
            server.stop_api_server()
            await asyncio.to_thread(server.start_api_server)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    try:
                        await changes(api, namespace, version)
                    except ApiError as error:
                        found = error if error.status == 429 else None
        assert (found.reason, found.may_pass) == ("TooManyRequests", True)
        assert "initializing" in str(found)

    run(server, test)


# -- the watcher -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def watching(api: KubernetesClient, namespace: str, store: JobStore, *names: str) -> AsyncIterator[list[Pod]]:
    """Pods of ours that a watcher keeps the status of."""
    events, installation = EventQueue(), Installation("me", namespace)
    loop = asyncio.get_running_loop()
    shared = Shared(api, EngineOptions(), installation, 1, Handles(store, 1), events, loop=loop)
    pods = []
    for name in names:
        await api.create_pod(manifest(namespace, name))
        attempts = [BatchedAttempt(None, name, "a", log_path=store.base_path / name)]
        found = Pod("j", name, manifest(namespace, name), store.base_path / "handle", attempts)
        found.is_created, found.created_at = True, 0.0
        pods.append(found)
    shared.pods = {pod.token: pod for pod in pods}
    Watcher(shared, Cleanup(shared)).watch(namespace)
    try:
        yield pods
    finally:
        for running in list(shared._tasks):
            running.cancel()
        await asyncio.gather(*shared._tasks, return_exceptions=True)
        events.close()


async def until(pod: Pod, check: Callable[[Pod], object]) -> None:
    """Wait until a change of a Pod is seen."""
    while not check(pod):
        pod.changed.clear()
        await pod.changed.wait()


def test_the_watcher_sees_what_happens_while_the_server_is_restarted(
    server: NewerApiServer, namespace: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version is too old then, or the server is not ready to be watched."""
    refused: list[int] = []
    describe = clients._error

    def kept(status: int, content: Any) -> ApiError:
        refused.append(status)
        return describe(status, content)

    monkeypatch.setattr(clients, "_error", kept)

    async def test(api: KubernetesClient) -> None:
        async with watching(api, namespace, store, "one", "two", "three") as pods:
            one, two, three = pods
            for pod in pods:
                await until(pod, lambda pod: pod.status)
            await asyncio.to_thread(server.report, one.manifest, {"phase": "Running"})
            await until(one, lambda pod: pod.status.phase == "Running")
            for _ in range(3):
                await api.create_pod(manifest(namespace, "theirs", THEIRS))  # it is not shown, but later
                await api.delete_pod(namespace, "theirs")
                server.stop_api_server()
                await asyncio.to_thread(server.compact)
                await asyncio.to_thread(server.start_api_server)
            await asyncio.to_thread(server.report, one.manifest, {"phase": "Succeeded"})
            await api.delete_pod(namespace, "two")
            await until(one, lambda pod: pod.is_over)
            await until(two, lambda pod: pod.is_hidden)
            assert not three.is_hidden
            await asyncio.to_thread(server.report, three.manifest, {"phase": "Failed"})
            await until(three, lambda pod: pod.is_over)

    run(server, test)
    assert set(refused) <= {404, 410, 429}  # 404: a server that has just started does not know custom resources yet


# -- the manager -----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(server: NewerApiServer, namespace: str, managers: Managers) -> Engine:
    managers.patch = PATCH
    options = {"image": "i", "namespace": namespace, "ttl": 1}
    config = yaml.safe_dump({"runners": {"kubernetes": options}})
    return Engine("kubernetes", config=config, environment={"KUBECONFIG": str(server.kubeconfig)})


def pod_of(server: NewerApiServer, namespace: str) -> dict[str, Any]:
    """The only Pod, once it is there."""
    (pod,) = wait_until(lambda: server.pods(namespace), what="its Pod is created")
    return pod


def status(phase: str, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A status as kubelets report it that are as new as the server."""
    is_running = str(phase == "Running")
    conditions = [{"type": name, "status": is_running, "observedGeneration": 1} for name in CONDITIONS]
    container = {
        "name": "task",
        "ready": phase == "Running",
        "started": phase == "Running",
        "restartCount": 0,
        "state": state,
        "allocatedResources": {"cpu": "100m"},
        "resources": {"requests": {"cpu": "100m"}},
        "user": {"linux": {"uid": 0, "gid": 0, "supplementalGroups": [0]}},
    }
    conditions += more.pop("conditions", [])
    found = {"observedGeneration": 1, "phase": phase, "qosClass": "Burstable", "conditions": conditions}
    return {**found, "containerStatuses": [container], **more}


def report_running(server: NewerApiServer, pod: dict[str, Any]) -> None:
    server.report(pod, status("Running", {"running": {"startedAt": now()}}))


def report_ended(server: NewerApiServer, pod: dict[str, Any], code: int, message: str, **more: Any) -> None:
    terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
    terminated |= {"startedAt": now(), "finishedAt": now()}
    phase = more.pop("phase", "Failed" if code else "Succeeded")
    server.report(pod, status(phase, {"running": None, "terminated": terminated}, **more))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_running(store: JobStore) -> None:
    wait_until(lambda: store.get_tasks("j")[0].status == "running", what="the task runs")


def test_a_task_runs_while_the_server_is_restarted(
    server: NewerApiServer, namespace: str, store: JobStore, manager: object
) -> None:
    """Its end is seen, and its Pod is removed."""
    store.submit("j", [task("a", "exit 3")])
    pod = pod_of(server, namespace)
    report_running(server, pod)
    is_running(store)
    server.stop_api_server()
    server.compact()
    server.start_api_server()
    report_ended(server, pod, 3, "end 0 0\n")
    done = only_task(store)
    assert (done.status, done.exit_code, done.reason) == ("failed", 3, "exit"), done
    wait_until(lambda: not server.pods(namespace), what="its Pod is removed")


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}


@pytest.mark.parametrize("code", [0, 143])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"reason": "DeadlineExceeded"}, "timeout"),
        ({"reason": "Evicted"}, "lost"),
        ({"reason": "Terminated"}, "lost"),
        ({"conditions": [DISRUPTED]}, "lost"),
    ],
    ids=["deadline", "evicted", "node shut down", "node drained"],
)
def test_kubernetes_ends_a_task(
    server: NewerApiServer,
    namespace: str,
    store: JobStore,
    manager: object,
    more: dict[str, Any],
    reason: str,
    code: int,
) -> None:
    """Newer kubelets report the phase, the reason and the exit code in one step."""
    store.submit("j", [task("a")])
    pod = pod_of(server, namespace)
    report_running(server, pod)
    is_running(store)
    report_ended(server, pod, code, "end 0 1\n", phase="Failed", **more)
    done = only_task(store)
    assert (done.status, done.reason, done.exit_code) == ("failed", reason, code), done


def test_a_task_is_cancelled(server: NewerApiServer, namespace: str, store: JobStore, manager: object) -> None:
    store.submit("j", [task("a")])
    report_running(server, pod_of(server, namespace))
    is_running(store)
    inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    assert not server.pods(namespace)


def test_a_pod_that_is_there_is_not_created_again(
    server: NewerApiServer,
    namespace: str,
    store: JobStore,
    managers: Managers,
    manager: subprocess.Popen[str],
) -> None:
    """A manager is killed between the creation of a Pod and writing that into its handle."""
    store.submit("j", [task("a")])
    pod = pod_of(server, namespace)
    report_running(server, pod)
    is_running(store)
    managers.kill(manager)
    (path,) = store.paths("j").runs.glob("*.on-kubernetes")
    Path(path).write_text(json.dumps({**json.loads(path.read_text()), "created": False}))
    managers.start()
    report_ended(server, pod, 0, "end 4 0\n[1]\n")
    done = only_task(store)
    assert (done.status, done.attempt) == ("completed", 1), done
    assert [found["metadata"]["uid"] for found in server.pods(namespace)] in ([pod["metadata"]["uid"]], [])
