"""The contract of engines, with Kubernetes: a real cluster of two nodes."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.outputs import read_outputs
from airflow_provider_air_executor.jobs.store import JobStore
from tests.engines.batches import BatchContract
from tests.engines.contract import Engine, EngineContract
from tests.support.jobs import ended, only_task, read_log, remove, task
from tests.support.kubernetes_cluster import IMAGE, NODES, STOPPED_BY, KubernetesCluster, missing
from tests.support.managers import CLI, Managers
from tests.support.processes import kill
from tests.support.waiting import PATIENCE, nothing_until, until, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "kubernetes"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(missing()), reason=f"not there: {', '.join(missing())}; see make kubernetes-build"),
]

# The Pods see the files of the tests, and their processes are those of this machine, so that tests can look at them.
OPTIONS: dict[str, Any] = {
    "image": IMAGE,
    "pod_template": {"spec": {"hostNetwork": True, "hostPID": True}},
    "volumes": [{"name": "tmp", "hostPath": {"path": "/tmp"}, "mountPath": "/tmp"}],
    "lost_after": 20,
    "stuck_after": 2,
    "ttl": 5,
}


def config(**options: Any) -> str:
    return yaml.safe_dump({"runners": {"kubernetes": {**OPTIONS, **options}}})


@pytest.fixture
def cluster(kubernetes: KubernetesCluster) -> KubernetesCluster:
    return kubernetes


@pytest.fixture
def engine(cluster: KubernetesCluster) -> Iterator[Engine]:
    found = Engine("kubernetes", config=config(), environment=cluster.environment)
    found.carriage_return = b""  # containerd drops it
    found.last_word = "; sleep 1"  # that of Debian 12 loses what it has not read when a container ends
    yield found
    cluster.cancel_all()


class TestKubernetes(EngineContract):
    """A Pod for each attempt."""


def running(store: JobStore, name: str = "j") -> str:
    """Wait until a task runs on a node, and say which."""

    def node() -> str | None:
        where = store.get_tasks(name)[0].where or ""
        return where.partition(" on ")[2] if "begun" in read_log(store, name, "a").text else None

    return wait_until(node, what="it runs on a node")


def pod_of(cluster: KubernetesCluster, name: str = "j") -> dict[str, Any]:
    """The Pod of a job of one task."""
    found = json.loads(cluster.kubectl("get", "pods", "-l", f"air-executor/job={name}", "-o", "json"))["items"]
    assert len(found) == 1, found
    return dict(found[0])


def test_where_it_is(store: JobStore, manager: object, cluster: KubernetesCluster, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"echo begun; {until(tmp_path / 'go')}")])
    assert running(store) in NODES
    name = pod_of(cluster)["metadata"]["name"]
    command = [*CLI, "status", "j", "--base-path", str(store.base_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"Pod default/j-a-[0-9a-f]{16} on n[12]", shown)
    (tmp_path / "go").touch()
    assert only_task(store).status == "completed"
    gone = lambda: name not in cluster.kubectl("get", "pods", "-o", "name")  # noqa: E731
    wait_until(gone, what="its Pod is deleted", interval=0.3)


def test_what_it_has_used(store: JobStore, manager: object) -> None:
    """Its container says it, also when it has failed, and has a result."""
    fill = "dd if=/dev/zero of=/dev/null bs=30000000 count=60"
    line = f"{fill}; echo '[1]' > $AIR_EXECUTOR_OUTPUT; exit $AIR_EXECUTOR_CODE"
    store.submit(
        "j", [task("a", line, env={"AIR_EXECUTOR_CODE": "0"}), task("b", line, env={"AIR_EXECUTOR_CODE": "3"})]
    )
    ended(store, "j")
    done, failed = store.get_tasks("j")
    assert (done.error, failed.error) == (None, "exit code 3")
    for found in (done, failed):
        assert found.usage is not None
        assert 0 < found.usage.cpu_seconds < 60
        assert 30_000_000 < (found.usage.max_memory or 0) < 300_000_000


def test_what_those_have_used_that_share_a_pod(store: JobStore, manager: object) -> None:
    """The memory is known of those that have had more than the ones before."""
    fill = "dd if=/dev/zero of=/dev/null count=60 bs"
    lines = {"a": f"{fill}=30000000", "b": "true", "c": f"{fill}=90000000; exit 3"}
    shared = {"tasks_per_submission": 3}
    store.submit("j", [task(name, line, kubernetes=shared) for name, line in lines.items()])
    ended(store, "j")
    first, second, third = [found.usage for found in store.get_tasks("j")]
    assert first is not None
    assert second is not None
    assert third is not None
    assert 0 < first.cpu_seconds < 60
    assert 30_000_000 < (first.max_memory or 0) < 90_000_000 < (third.max_memory or 0) < 300_000_000
    assert second.max_memory is None
    assert second.cpu_seconds < third.cpu_seconds


def test_what_it_needs_is_what_kubernetes_gives(
    store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster
) -> None:
    engine.config = config(ttl=60)
    engine.prepare(managers)
    managers.start()
    needed = {"cpus": 0.15, "memory": "100Mi", "time": "90s"}
    options = {
        "labels": {"team": "data"},
        "annotations": {"why": "test"},
        "node_selector": {"kubernetes.io/hostname": "n2"},
        "volumes": [{"name": "scratch", "emptyDir": {}, "mountPath": "/scratch"}],
    }
    line = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; cd /scratch && ls /tmp/. >/dev/null && echo mounted"
    store.submit("j", [task("a", line, resources=needed, kubernetes=options)])
    assert only_task(store).status == "completed", read_log(store, "j", "a").text
    assert read_log(store, "j", "a").text == f"{100 << 20}\nmounted\n"
    pod = pod_of(cluster)
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "150m", "memory": str(100 << 20)},
        "limits": {"memory": str(100 << 20)},
    }
    assert pod["spec"]["nodeName"] == "n2"
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["labels"]["team"] == "data"
    assert pod["metadata"]["annotations"]["why"] == "test"


def test_too_much_memory(store: JobStore, manager: object) -> None:
    # The lack of memory is reported apart from its end, and perhaps a moment later.
    line = "( x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x} ); code=$?; sleep 1; exit $code"
    store.submit("j", [task("a", line, resources={"memory": "30Mi"})])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "signal"), done
    assert "OOMKilled" in (done.error or "")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"resources": {"gpus": 1}}, "Insufficient nvidia.com/gpu"),
        ({"resources": {"memory": "10T"}}, "Insufficient memory"),
        ({"kubernetes": {"node_selector": {"disk": "ssd"}}}, "n1 lacks disk=ssd"),
        ({"kubernetes": {"image": "docker.io/no/such:1", "image_pull_policy": "Never"}}, "ErrImageNeverPull"),
        ({"kubernetes": {"image": "127.0.0.1:1/no/such:1"}}, "ErrImagePull|ImagePullBackOff"),
        ({"kubernetes": {"namespace": "nowhere"}}, 'namespaces "nowhere" not found'),
        ({"kubernetes": {"service_account": "nobody"}}, "nobody"),
        ({"kubernetes": {"env_from": [{"secretRef": {"name": "missing"}}]}}, 'secret "missing" not found'),
        ({"kubernetes": {"labels": {"a": "not valid!"}}}, "Invalid value"),
        ({"kubernetes": {"pod_template": {"spec": {"containers": "none"}}}}, "not that of a Pod"),
    ],
)
def test_what_can_never_run(store: JobStore, manager: object, more: dict[str, Any], why: str) -> None:
    store.submit("j", [task("a", "true", **more)])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "spawn"), done
    assert re.search(why, done.error or ""), done.error


def test_a_quota(store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster) -> None:
    """What others use up is waited for; what is more than the whole quota fails."""
    spec = {"hard": {"requests.memory": "100Mi"}}
    cluster.kubectl("create", "namespace", "small")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "small"}, "spec": spec}
    cluster.apply(quota)
    get = ("--namespace", "small", "get")
    wait_until(lambda: cluster.kubectl(*get, "quota", "q", "-o", "jsonpath={.status.used}"), what="it is counted")
    wait_until(lambda: "default" in cluster.kubectl(*get, "serviceaccounts"), what="Pods can be created there")
    engine.config = config(namespace="small")
    engine.prepare(managers)
    managers.start()
    store.submit("j", [task("a", "echo begun; sleep 1000", resources={"memory": "60Mi"})])
    running(store)
    store.submit("waits", [task("a", "true", resources={"memory": "50Mi"})])
    store.submit("never", [task("a", "true", resources={"memory": "101Mi"})])
    never = only_task(store, "never")
    assert (never.status, never.reason) == ("failed", "spawn"), never
    assert "exceeded quota: q, requested: requests.memory=" in (never.error or "")
    wait_until(lambda: "exceeded quota" in (store.get_tasks("waits")[0].where or ""), what="it waits")
    inbox.cancel(store, "j")
    assert only_task(store, "waits").status == "completed"
    cluster.kubectl("delete", "namespace", "small", "--wait=false")


def test_what_its_node_does_not_start(store: JobStore, managers: Managers, engine: Engine) -> None:
    engine.config = config(start_within=6)
    engine.prepare(managers)
    managers.start()
    volume = {"name": "v", "mountPath": "/v", "secret": {"secretName": "missing"}}
    store.submit("j", [task("a", "true", kubernetes={"volumes": [volume]})])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "spawn"), done
    assert re.search('has not started it within 6 s: FailedMount: .*"missing" not found', done.error or ""), done.error


def test_an_option_that_there_is_not(store: JobStore) -> None:
    with pytest.raises(InvalidJobError, match=r"tasks\[0\]\.kubernetes\.imagee"):
        store.submit("j", [task("a", "true", kubernetes={"imagee": "x"})])
    with pytest.raises(InvalidJobError, match="mountPath"):
        store.submit("j", [task("a", "true", kubernetes={"volumes": [{"name": "x", "emptyDir": {}}]})])


@pytest.mark.parametrize("length", [10, 2_900, 3_100, 200_000])
def test_results(store: JobStore, manager: object, length: int) -> None:
    line = f"""echo before; printf '["%0{length}d"]' 0 > $AIR_EXECUTOR_OUTPUT; printf after"""
    store.submit("j", [task("a", line)])
    assert only_task(store).status == "completed"
    assert read_outputs(store.paths("j"), store.get_tasks("j")) == {"a": ["0" * length]}
    assert read_log(store, "j", "a").text == "before\nafter"


def test_a_result_in_a_pod_of_many_containers(store: JobStore, manager: object) -> None:
    """A kubelet keeps the less of what each of them says at its end."""
    others = [{"name": f"c{number}", "image": IMAGE, "command": ["/bin/true"]} for number in range(4)]
    template = {"spec": {"hostNetwork": True, "containers": [{"name": "task"}, *others]}}
    line = """printf '["%02700d"]' 0 > $AIR_EXECUTOR_OUTPUT; sleep 1"""
    store.submit("j", [task("a", line, kubernetes={"pod_template": template})])
    assert only_task(store).status == "completed"
    assert read_outputs(store.paths("j"), store.get_tasks("j")) == {"a": ["0" * 2700]}


@pytest.mark.parametrize("size", [1, 5])
def test_a_result_where_memory_cannot_be_written_to(
    store: JobStore, manager: object, tmp_path: Path, size: int
) -> None:
    (tmp_path / "shm").mkdir(mode=0o755)
    volume = {"name": "shm", "hostPath": {"path": f"{tmp_path}/shm"}, "mountPath": "/dev/shm"}
    template = {"spec": {"hostNetwork": True, "securityContext": {"runAsUser": 1000}}}
    options = {"volumes": [volume], "tasks_per_submission": size, "pod_template": template}
    tasks = [task(f"t{n}", 'echo "[$W]" > $AIR_EXECUTOR_OUTPUT', env={"W": str(n)}) for n in (1, 2)]
    store.submit("j", [{**task, "kubernetes": options} for task in tasks], max_parallel_tasks=2)
    assert ended(store, "j").state == "completed", store.get_tasks("j")
    assert read_outputs(store.paths("j"), store.get_tasks("j")) == {"t1": [1], "t2": [2]}
    assert not list(Path("/tmp").glob("air-executor-*.json"))


def test_output_that_goes_on_in_another_file(store: JobStore, manager: object, tmp_path: Path) -> None:
    """A node looks every 10 s, and begins a new file if one is longer than 48 MiB."""
    lines = "for n in $(seq {} {}); do printf '%08000d\\n' $n; done"
    much, more = lines.format(1, 8000), lines.format(8001, 9000)
    begin = f"echo begun; {until(tmp_path / 'go')}"  # it is followed from the beginning
    may_end = until(tmp_path / "go-on")
    store.submit("j", [task("a", f"{begin}; {much}; sleep 12; echo middle; {may_end}; {more}; sleep 1")])
    running(store)
    (tmp_path / "go").touch()
    log = store.paths("j").log("a")
    length = len(b"begun\n") + 8000 * 8001 + len(b"middle\n")
    wait_until(lambda: log.exists() and log.stat().st_size == length, what="it is in the log while the task runs")
    assert store.get_tasks("j")[0].status == "running"
    (tmp_path / "go-on").touch()
    ended(store, "j")
    first, rest = (b"".join(b"%08000d\n" % n for n in numbers) for numbers in (range(1, 8001), range(8001, 9001)))
    found = log.read_bytes()
    assert (len(found), found == b"begun\n" + first + b"middle\n" + rest) == (9000 * 8001 + 13, True)


def test_a_deadline_of_kubernetes(store: JobStore, manager: object) -> None:
    template = {"spec": {"hostNetwork": True, "activeDeadlineSeconds": 2}}
    store.submit("j", [task("a", "sleep 1000", kubernetes={"pod_template": template})])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "timeout"), done
    assert "DeadlineExceeded" in (done.error or "")


def test_deleted_by_somebody_else(store: JobStore, manager: object, cluster: KubernetesCluster, tmp_path: Path) -> None:
    """As when a node is drained: there is nothing against trying again."""
    store.submit(
        "j",
        [task("a", f"echo begun; echo x >> {tmp_path}/ran; [ $AIR_EXECUTOR_ATTEMPT = 2 ] || sleep 999", retries=1)],
    )
    running(store)
    cluster.kubectl("delete", "pod", "-l", "air-executor/job=j", "--grace-period=1", "--wait=false")
    done = only_task(store)
    assert (done.status, done.attempt) == ("completed", 2), done
    assert (tmp_path / "ran").read_text() == "x\nx\n"


@pytest.mark.parametrize("size", [1, 5])
def test_evicted_and_ended_with_0(
    store: JobStore, manager: object, cluster: KubernetesCluster, tmp_path: Path, size: int
) -> None:
    """As when a node is drained: a task that saves what it has then has not completed."""
    line = f"trap 'echo x > {tmp_path}/saved; exit 0' TERM; echo begun; while :; do sleep 0.2; done"
    store.submit("j", [task("a", line, kubernetes={"tasks_per_submission": size})])
    running(store)
    name = pod_of(cluster)["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
    path = f"/api/v1/namespaces/default/pods/{name}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "lost"), done
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", STOPPED_BY)
def test_an_image_with_a_stopsignal(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path, name: str
) -> None:
    """The task gets SIGTERM all the same."""
    engine.prepare(managers)
    managers.start("--kill-grace", "30")
    line = f"trap 'echo x > {tmp_path}/told; exit 3' TERM; echo begun; while :; do sleep 0.2; done"
    store.submit("j", [task("a", line, kubernetes={"image": STOPPED_BY[name]})])
    running(store)
    inbox.cancel(store, "j")
    assert only_task(store).reason == "cancelled"
    assert (tmp_path / "told").exists()


def test_a_probe_fails_and_it_ends_with_0(store: JobStore, manager: object) -> None:
    probe = {"exec": {"command": ["/bin/false"]}, "failureThreshold": 1, "periodSeconds": 1}
    template = {"spec": {"hostNetwork": True, "containers": [{"name": "task", "livenessProbe": probe}]}}
    line = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
    store.submit("j", [task("a", line, kubernetes={"pod_template": template})])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "lost"), done


@pytest.mark.parametrize("label", ["air-executor/owner", "air-executor/run"])
def test_labels_are_not_what_a_pod_is_known_by(
    store: JobStore, manager: object, cluster: KubernetesCluster, tmp_path: Path, label: str
) -> None:
    """A user may change the labels of a Pod, and then no event of it comes any more. It runs all the same."""
    line = f"echo begun; echo x >> {tmp_path}/ran; {until(tmp_path / 'go')}; exit 6"
    store.submit("j", [task("a", line, retries=1)])
    running(store)
    cluster.kubectl("label", "pod", "-l", "air-executor/job=j", f"{label}-")
    store.submit("later", [task("a")])
    assert only_task(store, "later").status == "completed"  # what has changed before has been told
    assert store.get_tasks("j")[0].status == "running"
    (tmp_path / "go").touch()
    wait_until(lambda: store.get_tasks("j")[0].attempt == 2, what="its end is seen")
    assert only_task(store).exit_code == 6
    assert (tmp_path / "ran").read_text() == "x\nx\n"


def test_deleted_while_there_was_no_manager(
    store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster
) -> None:
    engine.prepare(managers)
    manager = managers.start()
    store.submit("j", [task("a", "echo begun; sleep 1000")])
    running(store)
    managers.kill(manager)
    cluster.kubectl("delete", "pod", "-l", "air-executor/job=j", "--force", "--grace-period=0")
    managers.start()
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "lost")
    assert "it is gone" in (done.error or "")


def test_created_but_not_in_its_handle(
    store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    """A manager is killed between the creation of a Pod and writing that into its handle."""
    engine.prepare(managers)
    manager = managers.start()
    store.submit("j", [task("a", f"echo begun; echo x >> {tmp_path}/ran; {until(tmp_path / 'go')}; exit 6")])
    running(store)
    managers.kill(manager)
    (path,) = store.paths("j").runs.glob("*.on-kubernetes")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": False}))
    managers.start()
    (tmp_path / "go").touch()
    done = only_task(store)
    assert (done.exit_code, done.attempt) == (6, 1)
    assert (tmp_path / "ran").read_text() == "x\n"
    wait_until(lambda: not list(store.paths("j").runs.glob("*.on-*")), what="the handle is removed")


def test_the_api_server_is_away(
    store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    engine.prepare(managers)
    manager = managers.start()
    store.submit("before", [task("a", f"echo begun; echo b >> {tmp_path}/ran; {until(tmp_path / 'go')}; echo last")])
    running(store, "before")
    cluster.stop("kube-apiserver")
    (tmp_path / "go").touch()
    try:
        store.submit("meanwhile", [task("a", f"echo m >> {tmp_path}/ran")])
        store.submit("cancelled", [task("a", f"echo c >> {tmp_path}/ran")])
        time.sleep(1)
        inbox.cancel(store, "cancelled")
        managers.kill(manager)
        manager = managers.start()
        assert any("trying again" in line for line in manager.stderr or ())  # until it says so
        wait_until(lambda: inbox.requests(store) == [], what="it knows of the cancellation")
        assert store.get_job("before").state == "working"
        assert store.get_job("meanwhile").state == "working"
    finally:
        cluster.start_api_server()
        cluster.wait_for_nodes()
    assert ended(store, "before").state == "completed", store.get_tasks("before")
    assert read_log(store, "before", "a").text == "begun\nlast\n"
    assert ended(store, "meanwhile").state == "completed", store.get_tasks("meanwhile")
    assert ended(store, "cancelled").reason == "cancelled"
    assert (tmp_path / "ran").read_text() == "b\nm\n"


@pytest.mark.parametrize("fenced", [False, True])
def test_a_node_is_lost(
    store: JobStore,
    managers: Managers,
    engine: Engine,
    cluster: KubernetesCluster,
    tmp_path: Path,
    fenced: bool,
) -> None:
    engine.config = config(fenced=fenced, lost_after=3)
    engine.prepare(managers)
    managers.start()
    store.submit(
        "j",
        [task("a", f"echo begun; echo x >> {tmp_path}/ran; [ $AIR_EXECUTOR_ATTEMPT = 2 ] || sleep 999", retries=1)],
    )
    node = running(store)
    cluster.lose_node(node)
    try:
        done = only_task(store)
    finally:
        cluster.start_node(node)
        cluster.wait_for_nodes()
    runs = len((tmp_path / "ran").read_text().split())
    if fenced:
        assert (done.status, done.attempt, runs) == ("completed", 2, 2)
    else:
        assert (done.status, done.reason, done.attempt, runs) == ("failed", "lost", 1, 1)
        assert f"node {node} does not answer" in (done.error or "")


def test_a_kubelet_is_restarted(store: JobStore, manager: object, cluster: KubernetesCluster, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"echo begun; echo x >> {tmp_path}/ran; sleep 6; echo end; exit 3")])
    node = running(store)
    cluster.stop(f"kubelet-{node}")
    cluster.start_kubelet(node)
    done = only_task(store)
    assert (done.status, done.exit_code) == ("failed", 3), done
    assert read_log(store, "j", "a").text == "begun\nend\n"
    assert (tmp_path / "ran").read_text() == "x\n"


def test_a_job_that_is_removed(store: JobStore, manager: object, cluster: KubernetesCluster) -> None:
    store.submit("j", [task("a", "echo begun; sleep 1000")])
    running(store)
    remove(store, "j")
    gone = lambda: not cluster.kubectl("get", "pods", "-l", "air-executor/job=j", "-o", "name")  # noqa: E731
    wait_until(gone, what="its Pod is gone", interval=0.3)


def test_what_is_left_of_others_is_not_touched(
    store: JobStore, manager: object, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    """Pods of an attempt that is forgotten are deleted; those of another installation are not."""
    path = store.base_path / "kubernetes.owner"
    wait_until(path.exists, what="the manager has given itself a name")
    owner = path.read_text()
    for name, whose in (("ours", owner), ("theirs", "another")):
        labels = {"air-executor/owner": whose, "air-executor/run": f"{name}1"}
        spec = {
            "restartPolicy": "Never",
            "hostNetwork": True,
            "containers": [{"name": "task", "image": IMAGE, "command": ["/bin/true"]}],
        }
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    gone = lambda: "pod/ours" not in cluster.kubectl("get", "pods", "-o", "name")  # noqa: E731
    wait_until(gone, what="ours is deleted", interval=0.3)
    assert "pod/theirs" in cluster.kubectl("get", "pods", "-o", "name")


def test_with_the_least_rights(
    store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    """The Role of the manifest is enough, and more than that is refused."""
    documents = list(yaml.safe_load_all((EXAMPLES / "manager.yaml").read_text()))
    wanted = [item for item in documents if item["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    (namespace,) = {item["metadata"]["namespace"] for item in wanted}
    cluster.kubectl("create", "namespace", namespace)
    cluster.apply(*wanted)
    account = next(item["metadata"]["name"] for item in wanted if item["kind"] == "ServiceAccount")
    token = wait_until(lambda: cluster.token_of(account, namespace), what="it has a token")
    wait_until(lambda: cluster.token_of("default", namespace), what="Pods can be created there")
    path = tmp_path / "kubeconfig"
    cluster.write_kubeconfig(path, token, namespace)
    engine.config = config(kubeconfig=str(path))
    engine.prepare(managers)
    managers.start()
    store.submit("j", [task("a", "echo begun; sleep 1"), task("b", "exit 3")], max_parallel_tasks=2)
    store.submit("elsewhere", [task("a", "true", kubernetes={"namespace": "default"})])
    line = 'grep -c secret "$AIR_EXECUTOR_ATTACHED/word"'
    store.submit("attached", [task("a", line, kubernetes={"attached_files": ["word"]})], attached={"word": b"secret"})
    store.submit("cancelled", [task("a", "echo begun; sleep 1000")])
    running(store, "cancelled")
    inbox.cancel(store, "cancelled")
    assert ended(store, "cancelled").reason == "cancelled"
    ended(store, "j")
    assert [task.exit_code for task in store.get_tasks("j")] == [0, 3]
    assert "forbidden" in (only_task(store, "elsewhere").error or "")
    assert only_task(store, "attached").status == "completed", only_task(store, "attached")
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_token_that_has_expired(
    store: JobStore, managers: Managers, engine: Engine, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    """The manager goes on when somebody writes a new one into the kubeconfig."""
    path = tmp_path / "kubeconfig"
    cluster.write_kubeconfig(path, "expired")
    engine.config = config(kubeconfig=str(path))
    engine.prepare(managers)
    manager = managers.start()
    store.submit("j", [task("a", "true")])
    assert any("Unauthorized; trying again" in line for line in manager.stderr or ())  # until it says so
    shutil.copy(cluster.kubeconfig, path)
    assert only_task(store).status == "completed"


# -- several tasks in one Pod --------------------------------------------------------------------------------------


@pytest.fixture
def batched(managers: Managers, engine: Engine) -> subprocess.Popen[str]:
    """A manager whose tasks share Pods."""
    engine.config = config(tasks_per_submission=10)
    engine.prepare(managers)
    return managers.start()


class TestBatches(BatchContract):
    """Several tasks in one Pod."""


def test_a_batch_is_deleted(store: JobStore, batched: object, cluster: KubernetesCluster, tmp_path: Path) -> None:
    """What had not begun is run by another Pod, if it is certain that it had not."""
    first = task("first", f"echo x >> {tmp_path}/ran; sleep 1000")
    tasks = [first, *(task(f"t{number}", f"echo {number} >> {tmp_path}/ran") for number in range(4))]
    store.submit("j", tasks, max_parallel_tasks=5)
    # A kubelet that has not reported yet that it has started a Pod may see its deletion only many seconds later.
    is_known = lambda: (store.get_tasks("j")[1].where or "").endswith("waiting for its turn")  # noqa: E731
    wait_until(is_known, what="the first is known to run")
    cluster.kubectl("delete", "--wait=false", "--grace-period=30", "pods", "-l", "air-executor/job=j")
    ended(store, "j")
    reasons = {task.id: task.reason for task in store.get_tasks("j")}
    assert reasons == {"first": "lost", "t0": None, "t1": None, "t2": None, "t3": None}, [
        t.error for t in store.get_tasks("j")
    ]
    assert sorted((tmp_path / "ran").read_text().split()) == ["0", "1", "2", "3", "x"]
    handles = lambda: [path for path in store.paths("j").runs.iterdir() if "bundle" in path.name]  # noqa: E731
    wait_until(lambda: not handles(), what="the handle is removed")


def test_a_batch_without_a_manager(
    store: JobStore, managers: Managers, batched: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The next manager finds out how far its Pod has come, and what was left to do."""
    line = f"echo $AIR_EXECUTOR_TASK >> {tmp_path}/ran; echo $AIR_EXECUTOR_TASK; sleep 0.5"
    tasks = [task(f"t{number}", line) for number in range(3)]
    tasks += [task("long", f"echo $PPID > {tmp_path}/first; {line}; sleep 1000"), task("last", line)]
    store.submit("j", tasks, max_parallel_tasks=5)
    wait_until((tmp_path / "ran").exists, what="the first runs")
    managers.kill(batched)
    wait_until(lambda: "long" in (tmp_path / "ran").read_text(), what="the long one runs")
    kill([int((tmp_path / "first").read_text())])  # process of the container, that is
    managers.start()
    ended(store, "j")
    assert [task.reason for task in store.get_tasks("j")] == [None, None, None, "signal", None]
    assert (tmp_path / "ran").read_text().split() == ["t0", "t1", "t2", "long", "last"]
    assert [read_log(store, "j", task.id).text for task in store.get_tasks("j")] == [
        f"{name}\n" for name in ("t0", "t1", "t2", "long", "last")
    ]


def test_a_batch_that_has_ended_without_a_manager(
    store: JobStore,
    managers: Managers,
    batched: subprocess.Popen[str],
    cluster: KubernetesCluster,
    tmp_path: Path,
) -> None:
    """Nobody kept an eye on its limits of time, and those who kept them have completed."""
    line = f"echo $AIR_EXECUTOR_TASK | tee -a {tmp_path}/ran; sleep 0.5"
    store.submit("j", [task(f"t{number}", line, timeout=2) for number in range(6)], max_parallel_tasks=6)
    wait_until((tmp_path / "ran").exists, what="the first runs")
    managers.kill(batched)
    has_ended = lambda: pod_of(cluster)["status"]["phase"] == "Succeeded"  # noqa: E731
    wait_until(has_ended, what="its Pod has ended", interval=0.2)
    managers.start()
    assert ended(store, "j").state == "completed"
    assert (tmp_path / "ran").read_text().split() == [f"t{number}" for number in range(6)]


def test_a_batch_that_prints_and_returns_much(store: JobStore, batched: object) -> None:
    prints = task("prints", "seq 200000; sleep 1")
    returns = task(
        "returns", "{ echo -n '\"'; head -c 100000 /dev/zero | tr '\\0' x; echo '\"'; } > $AIR_EXECUTOR_OUTPUT"
    )
    long = task("long", "true #" + "x" * 6000)  # too long to share a Pod
    store.submit("j", [prints, returns, long, task("last", "sleep 1")], max_parallel_tasks=4)
    assert ended(store, "j").state == "completed"
    log = read_log(store, "j", "prints").text
    assert log == "".join(f"{number}\n" for number in range(1, 200001))
    assert read_outputs(store.paths("j"), store.get_tasks("j")) == {"returns": 100_000 * "x"}
    where = {task.id: task.where for task in store.get_tasks("j")}
    assert where["prints"] == where["returns"] == where["last"] != where["long"]


def test_the_size_of_a_batch(store: JobStore) -> None:
    for name in ("tasks_per_submission", "bundle"):
        with pytest.raises(InvalidJobError, match=f"kubernetes.{name}: must be less than or equal to 50"):
            store.submit("j", [task("a", "true", kubernetes={name: 51})])


def test_the_old_name_of_tasks_per_submission(store: JobStore, managers: Managers, engine: Engine) -> None:
    """It is read from the settings and from tasks, and the manager warns of it."""
    engine.config = config(bundle=2)
    engine.prepare(managers)
    manager = managers.start()
    own = {"kubernetes": {"bundle": 1}}
    store.submit("j", [task("a", "true"), task("b", "true"), task("c", "true", **own)], max_parallel_tasks=3)
    assert any("kubernetes.bundle is called tasks_per_submission now" in line for line in manager.stderr or ())
    assert ended(store, "j").state == "completed"
    where = {task.id: task.where for task in store.get_tasks("j")}
    assert where["a"] == where["b"] != where["c"]


def test_side_by_side_with_local_tasks(store: JobStore, managers: Managers, engine: Engine, tmp_path: Path) -> None:
    engine.config = config(max_concurrent=2) + "max_concurrent_runners: 1\n"
    engine.prepare(managers)
    managers.start()
    many = [task(f"s{number}", until(tmp_path / "go")) for number in range(3)]
    store.submit("many", many, max_parallel_tasks=3)
    where = "test -e /dev/termination-log && echo pod || echo local"
    light = [task("light", where, runner="local"), task("heavy", where, dependencies=["light"])]
    store.submit("mixed", [light[0]])
    has_ended = lambda name: store.get_job(name).state.is_terminal  # noqa: E731
    # The cluster's tasks do not hold it up.
    nothing_until(lambda: has_ended("mixed"), unless=lambda: has_ended("many"), what="the light one has ended")
    assert store.get_job("mixed").state == "completed"
    (tmp_path / "go").touch()
    assert ended(store, "many").state == "completed"
    store.submit("both", light)
    assert ended(store, "both").state == "completed"
    assert read_log(store, "both", "light").text == "local\n"
    assert read_log(store, "both", "heavy").text == "pod\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kubeconfig": "/no/such/file"}, "/no/such/file"),
        ({"context": "nowhere"}, "there is no context 'nowhere' in the kubeconfig; there are: test"),
        ({"ttl": -1}, "runners.kubernetes.ttl"),
        ({"pod_template": "/no/such/template"}, "/no/such/template cannot be read"),
        ({"colour": "red"}, "runners.kubernetes.colour"),
    ],
)
def test_settings(store: JobStore, managers: Managers, engine: Engine, options: dict[str, Any], why: str) -> None:
    engine.config = config(**options)
    engine.prepare(managers)
    process = managers.launch()
    assert process.wait(PATIENCE) == 2
    assert why in process.communicate()[1]
