"""Somebody sets the clock of the machine: what has run for a while has run no longer for that."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import clock
from tests.support.jobs import ended, shim_pid, task
from tests.support.managers import Managers
from tests.support.waiting import until, wait_until

SetBy = Callable[[int], None]

# What time it is, for our own modules.
_SET = """
from airflow_provider_air_executor.jobs import models
from airflow_provider_air_executor.system import clock

class Set(models.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + __import__("datetime").timedelta(seconds={})

models.datetime = clock.datetime = Set
"""


@pytest.fixture
def set_by(managers: Managers) -> SetBy:
    """Set the clock of the next managers, by so many seconds."""

    def set_clock(seconds: int) -> None:
        managers.patch = _SET.format(seconds)

    return set_clock


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the time since the boot")
def test_a_timeout_does_not_come_sooner(store: JobStore, managers: Managers, tmp_path: Path, set_by: SetBy) -> None:
    first = managers.start()
    store.submit("of-task", [task("a", until(tmp_path / "go"), timeout=3000)])
    store.submit("of-job", [task("a", until(tmp_path / "go"))], timeout=3000)
    for name in ("of-task", "of-job"):
        shim_pid(store, name, "a")
    wait_until(lambda: store.get_job("of-job").started_clock, what="its start is published")
    managers.kill(first)
    set_by(7200)
    managers.start()
    store.submit("next", ["true"])
    assert ended(store, "next").state == "completed"  # the others have been adopted before
    (tmp_path / "go").touch()
    assert [ended(store, name).reason for name in ("of-task", "of-job")] == [None, None]


def test_a_mark_of_another_boot_is_no_measure() -> None:
    marked = clock.mark(ago=50)
    now = utc_now()
    assert clock.elapsed(marked, now) > 49
    future = now + timedelta(hours=1)
    for other in ("00000000 12.5", "", "nonsense", marked.replace(" ", " x"), None):
        assert clock.elapsed(other, future) == 0
