"""A task changes the modes of the directories of its own job, which its user may do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support import ordinary_user
from tests.support.jobs import ended, outcomes, task
from tests.support.waiting import wait_until


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything; run by the test below")
class TestAsItsOwner:
    """What the owner of a job filesystem sees, who is not root."""

    @pytest.mark.parametrize("mode", ["a-w", "000"])
    def test_the_job_goes_on(self, store: JobStore, manager: subprocess.Popen[str], mode: str) -> None:
        line = f'cd "$AIR_EXECUTOR_JOB_DIR"; chmod {mode} logs runs work .'
        store.submit("j", [task("a", line), task("b", "echo b", after="a")])
        wait_until(lambda: self._state(store) in ("completed", "failed"), what="it goes on")
        assert outcomes(store, "j") == {"a": ("completed", None), "b": ("completed", None)}

    @staticmethod
    def _state(store: JobStore) -> str:
        try:
            return store.get_job("j").state
        except PermissionError:
            return ""

    def test_it_can_be_cancelled(self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
        line = f'chmod a-w "$AIR_EXECUTOR_JOB_DIR"; echo >> {tmp_path}/locked; sleep 1000'
        store.submit("j", [task("a", line)])
        wait_until((tmp_path / "locked").exists, what="it has been made read-only")
        inbox.cancel(store, "j")
        assert ended(store, "j").reason == "cancelled"


@pytest.mark.skipif(bool(ordinary_user.missing()), reason=f"needs {', '.join(ordinary_user.missing())}")
def test_as_an_ordinary_user() -> None:
    ordinary_user.run_tests(f"{__file__}::{TestAsItsOwner.__name__}")
