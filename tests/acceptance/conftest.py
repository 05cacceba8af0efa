"""Airflow installations that several modules share, since no test ends a part of them, and pages in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import DAGS
from tests.acceptance.over_network import OverNetwork
from tests.acceptance.with_users import WithUsers
from tests.support.installation import EXAMPLES, EXECUTOR, Installation
from tests.support.remote_manager import RemoteManager
from tests.support.scheduling import close_after_group
from tests.support.sshd import Sshd

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def executor_marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tasks of :func:`with_executor` write down what they have done."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="session")
def with_executor(executor_marks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An Airflow on PostgreSQL whose executor is ours, with the example DAGs and those of the executor's tests."""
    dags = tmp_path_factory.mktemp("dags")
    for file in (DAGS / "executor_dags.py", *EXAMPLES.glob("*.py")):
        (dags / file.name).symlink_to(file)
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": "8",
        "EXECUTOR_TEST_MARKS": str(executor_marks),
    }
    with Installation(dags, settings, postgresql=True) as installation:
        close_after_group(installation.close)
        yield installation


@pytest.fixture(scope="module")
def over_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverNetwork]:
    """An Airflow with the example DAGs and those of the tests of the network, and another machine."""
    dags = tmp_path_factory.mktemp("dags")
    for file in (DAGS / "remote_dags.py", *EXAMPLES.glob("*.py")):
        (dags / file.name).symlink_to(file)
    with OverNetwork(dags) as found:
        yield found


@pytest.fixture(scope="module")
def by_https(over_network: OverNetwork) -> Iterator[RemoteManager]:
    """A manager that this Airflow reaches by HTTPS."""
    with over_network.https() as found:
        yield found


@pytest.fixture(scope="module")
def by_ssh(over_network: OverNetwork) -> Iterator[Sshd]:
    """A machine that this Airflow reaches by SSH."""
    with over_network.ssh() as found:
        yield found


@pytest.fixture(scope="session")
def airflow_with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithUsers]:
    """An Airflow for the tests of the pages, with the DAGs of all of them."""
    dags = tmp_path_factory.mktemp("dags")
    for name in ("browser_dags.py", "plugin_dags.py"):
        (dags / name).symlink_to(DAGS / name)
    with WithUsers(dags) as installation:
        close_after_group(installation.close)
        for dag_id in ("hidden", "seen", "waiting", "watched"):
            installation.wait_for_dag(dag_id)
        yield installation


@pytest.fixture(scope="session")
def embedded_store(airflow_with_users: WithUsers) -> JobStore:
    """The job filesystem of that Airflow's embedded manager, which runs."""
    from airflow_provider_air_executor.hooks import start_manager_if_none

    found = JobStore(airflow_with_users.base_path)
    start_manager_if_none(found)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    from tests.acceptance.browsing import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def cookies(airflow_with_users: WithUsers, browser: Browser) -> Any:
    """What the browser has after somebody logged in."""
    from tests.acceptance.browsing import log_in

    return log_in(browser, airflow_with_users.url)


@pytest.fixture
def page(browser: Browser, cookies: Any, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of somebody who is logged in; it is photographed at the end of the test."""
    from tests.acceptance.browsing import opened

    with opened(browser, cookies, request.node.name.removeprefix("test_")) as found:
        yield found
