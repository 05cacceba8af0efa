"""What takes long to start, once for each worker: clusters, and Airflow installations that no test harms.

Tests that share one belong to the same group of pytest-xdist, so that one worker starts it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.kubernetes_cluster import KubernetesCluster
from tests.support.slurm_cluster import SlurmCluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A Slurm cluster of two nodes."""
    with contextlib.closing(SlurmCluster()) as cluster:
        yield cluster.start()


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[KubernetesCluster]:
    """A Kubernetes cluster of two nodes."""
    with contextlib.closing(KubernetesCluster()) as cluster:
        yield cluster.start()
