"""What takes long to start, once for each worker: clusters, and Airflow installations that no test harms.

Tests that share one belong to the same group of pytest-xdist, so that one worker starts it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import prepared
from tests.support.kubernetes_cluster import KubernetesCluster
from tests.support.slurm_cluster import RUNNING, SiteCluster, Slurm, SlurmCluster


@pytest.fixture(scope="session", autouse=True)
def prepared_processes() -> Iterator[None]:
    """Processes of the command line and of Airflow are forked from one that has imported it, see :mod:`.prepared`."""
    prepared.in_use = sys.platform.startswith("linux")
    yield
    prepared.in_use = False
    prepared.close()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm cluster of two nodes; one that root has started, where an ordinary user runs the tests."""
    directory = os.environ.get(RUNNING)
    if directory:
        yield Slurm(Path(directory))
        return
    with contextlib.closing(SlurmCluster()) as cluster:
        yield cluster.start()


@pytest.fixture(scope="session")
def slurm_site() -> Iterator[SiteCluster]:
    """A Slurm cluster of two nodes, with control groups and limits."""
    with contextlib.closing(SiteCluster()) as cluster:
        yield cluster.start()


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[KubernetesCluster]:
    """A Kubernetes cluster of two nodes."""
    with contextlib.closing(KubernetesCluster()) as cluster:
        yield cluster.start()
