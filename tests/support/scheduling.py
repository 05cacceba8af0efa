"""Which tests run one after the other in one worker of pytest-xdist, and which come first.

Tests that share what takes long to start are a group; all others go to whichever worker is free. pytest-xdist has the
marker ``xdist_group`` for this, but its 3.8.0 does not see it with pytest 9.2.0 (``findings/xdist_group.sh``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

# Those that take longest come first, so that no worker is left alone with one in the end.
_GROUPS = {
    name: re.compile(pattern)
    for name, pattern in (
        (
            "kubernetes",
            r"acceptance/test_example_dags\.py.*\[(service|slurm|kubernetes)\]|/test_(executor_on_)?kubernetes(_attached)?\.py",
        ),
        ("newer_api", r"engines/test_kubernetes_newer_api\.py"),
        ("remote", r"acceptance/test_remote\.py"),
        ("remote_examples", r"acceptance/test_example_dags\.py.*\[(https|ssh)\]"),
        ("operator_https", r"acceptance/test_operator\.py.*[\[-]https"),
        ("operator", r"acceptance/test_operator\.py"),
        ("crashes", r"acceptance/test_executor_crashes\.py"),
        (
            "executor",
            r"acceptance/(test_executor\.py|test_example_dags\.py.*\[embedded\]|test_demo\.py::test_a_dag_that_fails)",
        ),
        ("executor_on_slurm", r"acceptance/test_executor_on_slurm\.py"),
        ("same_as_local", r"acceptance/test_same_as_local\.py"),
        ("slurm_site", r"engines/test_slurm\.py::TestSite"),
        ("slurm", r"engines/test_slurm\.py"),
        ("pages", r"acceptance/test_(browser\w*|plugin)\.py"),
        ("pyz", r"pyz/test_pyz\.py"),
        (
            "alone",
            r"acceptance/|test_state_machine\.py|test_as_an_ordinary_user|test_in_a_virtual_machine|matrix/test_rows\.py",
        ),  # each by itself, but not last
        ("sql", r"provider/test_transfers\.py::TestDocumented"),
        ("postgresql", r"provider/test_transfers\.py.*(postgresql|rows_may_be_dicts)"),
        ("documentation", r"provider/test_documentation\.py::test_examples_are_dags"),
        ("registration", r"provider/test_registration\.py::test_(example_dags|the_dag_of_the_readme)_parse"),
    )
}


_to_close: list[Callable[[], None]] = []


def close_after_group(close: Callable[[], None]) -> None:
    """Let a fixture of the session end with the group that is running: all that share it are in that group.

    What an Airflow does without tasks takes a minute of processor time in half an hour.

    :param close: may be called again at the end of the session.
    """
    _to_close.append(close)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Close what the group has shared, if this was its last test."""
    if nextitem is not None and group_of(nextitem.nodeid) != group_of(item.nodeid):
        while _to_close:
            _to_close.pop()()


def group_of(nodeid: str) -> str:
    """The group of a test; empty if it goes to any worker."""
    return next((name for name, pattern in _GROUPS.items() if pattern.search(nodeid)), "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first.

    In that of Kubernetes, the tests that need an Airflow come last: when a run begins, all other groups start theirs.
    """
    places = {name: place for place, name in enumerate(_GROUPS)}

    def position_of(item: pytest.Item) -> tuple[int, bool]:
        group = group_of(item.nodeid)
        return places.get(group, len(places)), group == "kubernetes" and "acceptance/" in item.nodeid

    items.sort(key=position_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule by groups, whatever ``--dist`` says."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
        """Gives a worker one group after the other."""

        def _split_scope(self, nodeid: str) -> str:
            group = group_of(nodeid)
            return nodeid if group in ("", "alone") else group

    return GroupScheduling(config, log)
