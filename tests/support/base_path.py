"""A base path, and managers and servers that run there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import Managers
from tests.support.mounts import bound

if TYPE_CHECKING:  # most tests do not wait for what a server imports
    from tests.support.servers import Servers, ServerThread


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "base")


@pytest.fixture
def mounts(store: JobStore, tmp_path: Path) -> Iterator[tuple[JobStore, JobStore]]:
    """The base path as two mounts show it: neither sees a lock on the other one, or hears what happens there."""
    store.create_directories()
    with bound(store.base_path, tmp_path / "A") as one, bound(store.base_path, tmp_path / "B") as other:
        yield JobStore(one), JobStore(other)


@pytest.fixture
def managers(store: JobStore) -> Iterator[Managers]:
    found = Managers(store)
    yield found
    found.close()


@pytest.fixture
def manager(managers: Managers) -> subprocess.Popen[str]:
    """A running manager."""
    return managers.start()


@pytest.fixture
def server(store: JobStore) -> Iterator[ServerThread]:
    """A running server, in a thread."""
    from tests.support.servers import ServerThread

    with ServerThread(store) as found:
        yield found


@pytest.fixture
def servers(store: JobStore) -> Iterator[Servers]:
    """Servers as real processes."""
    from tests.support.servers import Servers

    found = Servers(store)
    yield found
    found.close()
