"""A manager that finds many jobs which have ended begins with what is to be run."""

from __future__ import annotations

import pytest

from airflow_provider_air_executor.jobs.models import Job, JobState, utc_now
from airflow_provider_air_executor.jobs.store import JobStore, dump_job
from airflow_provider_air_executor.manager import changes
from tests.support.stepped_manager import SteppedManager


def have_ended(store: JobStore, number: int) -> list[str]:
    """Put jobs there that have ended: their names."""
    names = [f"old{place}" for place in range(number)]
    for name in names:
        store.submit(name, ["true"], durable=False)
        ended = store.get_job(name).evolve(state=JobState.COMPLETED)
        store.paths(name).state.write_bytes(dump_job(ended))
    return names


def go_rounds(stepped: SteppedManager, number: int) -> None:
    """Let the manager go round, and look at everything each time."""
    for _ in range(number):
        stepped.clock.passed += 1.0
        stepped.go_round()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs whose ``state.json`` was read whole."""
    names = []
    load = JobStore.load_job

    def load_job(store: JobStore, name: str) -> tuple[Job, object]:
        names.append(name)
        return load(store, name)

    monkeypatch.setattr(JobStore, "load_job", load_job)
    monkeypatch.setattr(changes, "_CHECKED_A_PASS", 5)
    return names


def test_jobs_that_have_ended_are_read_when_it_is_their_turn(stepped: SteppedManager, read: list[str]) -> None:
    names = have_ended(stepped.store, 12)
    stepped.submit("new", [stepped.command(waits=False)], 1)
    read.clear()
    stepped.start_manager()
    assert "new" in read
    assert len(read) <= 6
    assert stepped.manager is not None
    assert stepped.manager.shared.jobs.ended.keys() == set(names)
    go_rounds(stepped, 4)
    assert sorted(name for name in read if name != "new") == sorted(names)  # each once


def test_a_job_that_has_ended_and_is_not_valid_fails_in_its_turn(stepped: SteppedManager, read: list[str]) -> None:
    for name in have_ended(stepped.store, 12):
        path = stepped.store.paths(name).state
        path.write_text(path.read_text().replace('"timeout": null', '"timeout": -1'))
    stepped.start_manager()
    go_rounds(stepped, 6)
    assert {job.reason for job in stepped.store.list_jobs()} == {"invalid"}
    assert len(read) >= 12


def test_a_job_that_has_ended_and_is_set_to_waiting_is_run(stepped: SteppedManager, read: list[str]) -> None:
    names = have_ended(stepped.store, 12)
    stepped.start_manager()
    found = stepped.store.get_job(names[-1])
    stepped.store.paths(found.name).state.write_bytes(
        dump_job(found.evolve(state=JobState.WAITING, updated_at=utc_now()))
    )
    read.clear()
    stepped.go_round()
    assert read[0] == found.name
    assert stepped.let_all_end()
    assert stepped.store.get_job(found.name).attempt == 1
