"""The contract of runners, kept by Kubernetes: a real cluster of two nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.manager.runners.contract import Engine, RunnerContract
from tests.manager.runners.kubernetes_cluster import IMAGE, KubernetesCluster, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not there: {', '.join(missing())}; see make kubernetes-build")

# The Pods see the files of the tests, and their processes are those of this machine, so that tests can look at them.
OPTIONS: dict[str, Any] = {
    "image": IMAGE,
    "pod_template": {"spec": {"hostNetwork": True, "hostPID": True}},
    "volumes": [{"name": "tmp", "hostPath": {"path": "/tmp"}, "mountPath": "/tmp"}],
    "lost_after": 3,
    "stuck_after": 2,
    "ttl": 5,
}


def config(**options: Any) -> str:
    return yaml.safe_dump({"runners": {"kubernetes": {**OPTIONS, **options}}})


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubernetesCluster]:
    cluster = KubernetesCluster()
    try:
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture
def engine(cluster: KubernetesCluster) -> Iterator[Engine]:
    found = Engine("kubernetes", config=config(), environment=cluster.environment, patience=2)
    found.carriage_return = b""  # containerd drops it
    found.last_word = "; sleep 1"  # that of Debian 12 loses what it has not read when a container ends
    yield found
    cluster.cancel_all()


class TestKubernetes(RunnerContract):
    """A Pod for each attempt."""
