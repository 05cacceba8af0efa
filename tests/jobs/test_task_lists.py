"""Long lists are parsed in pieces, with the same result as short ones at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError
from airflow_provider_air_executor.jobs import inbox, task_lists
from airflow_provider_air_executor.jobs.inbox import Action, Request
from airflow_provider_air_executor.jobs.models import Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.pieces import Pieces, finish
from airflow_provider_air_executor.jobs.store import JobStore, dump_tasks

TEXT = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TASKS = st.lists(
    st.builds(
        Task,
        id=st.sampled_from("abcdef"),
        command=st.text(TEXT, min_size=1),
        args=st.lists(st.text(TEXT), max_size=2).map(tuple),
        env=st.dictionaries(st.sampled_from(["A", "B"]), st.text(TEXT)),
        status=st.sampled_from(list(TaskStatus)),
        created_at=st.none() | st.just(utc_now()),
        timeout=st.none() | st.floats(0.1, 10),
        retries=st.integers(0, 3),
        more=JSON,
    ),
    max_size=5,
)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


def parsed(data: bytes, at_once: int) -> Any:
    """The tasks, or that there are none."""
    pieces = [data] if at_once >= 0 else [data[place : place + 70] for place in range(0, len(data), 70)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_lists, "AT_ONCE", at_once)
        patch.setattr(task_lists, "_MOST", 40)
        try:
            return finish(task_lists.parsing(pieces))
        except InvalidJobError:
            return None


@given(TASKS)
def test_what_is_written_is_read_in_pieces_as_it_is_at_once(tasks: list[Task]) -> None:
    data = dump_tasks(tasks)
    assert parsed(data, -1) == parsed(data, len(data)) == tasks
    assert json.loads(data) == [task.model_dump(mode="json") for task in tasks]


@given(st.lists(JSON, max_size=3) | st.lists(st.fixed_dictionaries({"id": JSON, "command": JSON, "env": JSON})))
def test_what_is_no_list_of_tasks_is_refused_in_pieces_too(found: list[Any]) -> None:
    data = json.dumps(found).encode()
    assert parsed(data, -1) == parsed(data, len(data))


@given(TASKS.map(dump_tasks), st.integers(0, 2000), st.sampled_from([b"", b",", b"]", b"[", b'"', b"{", b"\xff", b"1"]))
def test_a_list_that_is_spoiled_is_refused_or_read_as_it_is_at_once(data: bytes, place: int, put: bytes) -> None:
    spoiled = data[:place] + put + data[place + 1 :]
    assert parsed(spoiled, -1) == parsed(spoiled, len(spoiled))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'[' is missing at character 0"),
        ("{}", "'[' is missing at character 0"),
        ("[] []", "there is something after the end, at character 3"),
        ('[{"id": "a", "command": "x"}, ', "Expecting value at character 30"),
        ('[{"id": "a", "command": "x"} {}]', "']' is missing at character 29"),
        ('[{"id": "a", "command": 1}]', "tasks[0].command: must be a text"),
        ('[{"id": "a", "command": "x"}, {"command": "x"}]', "tasks[1].id: is missing"),
        ("[" * 100_000, "tasks: it is nested too deep"),
    ],
)
def test_the_place_is_named(monkeypatch: pytest.MonkeyPatch, text: str, why: str) -> None:
    monkeypatch.setattr(task_lists, "AT_ONCE", -1)
    with pytest.raises(InvalidJobError) as caught:
        finish(task_lists.parsing([text.encode()]))
    assert why in str(caught.value)


def test_a_task_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_lists, "LONGEST", 100_000)
    tasks = [Task(id=name, command="x" * length) for name, length in (("a", 99_000), ("b", task_lists.AT_ONCE))]
    with pytest.raises(InvalidJobError, match="longer than 100000 characters"):
        finish(task_lists.parsing([dump_tasks(tasks)]))


def test_a_long_request_is_read_in_pieces(store: JobStore) -> None:
    tasks = tuple(Task(id=f"t{number}", command="x" * 1000, created_at=utc_now()) for number in range(1000))
    path = store.base_path / "request.json"
    asked = Request(request=Action.ADD_TASKS, job="j", tasks=tasks)
    path.write_text(asked.model_dump_json(exclude_none=True))
    found = []

    def reading() -> Pieces[None]:
        found.append((yield from inbox.loading_request(path)))

    assert len(list(reading())) > 10
    assert found == [asked.evolve(tasks=list(tasks))]


@pytest.mark.parametrize(
    "text", ['{"request": "add_tasks", "job": "j", "tasks": [%s]}', '{"tasks": [%s], "job": ', "[%s]"]
)
def test_a_long_request_that_is_not_valid_is_refused(store: JobStore, text: str) -> None:
    path = store.base_path / "request.json"
    path.write_text(text % ", ".join(["7"] * 200_000))
    with pytest.raises(CorruptFileError, match="request"):
        inbox.load_request(path)


def test_a_state_that_is_too_long_is_not_read(store: JobStore) -> None:
    store.submit("j", ["true"], durable=False)
    path = Path(store.paths("j").state)
    path.write_text(path.read_text() + " " * 4_000_000)
    with pytest.raises(CorruptFileError, match="longer than"):
        store.load_job("j")


def test_a_task_that_no_manager_would_take_is_not_submitted(store: JobStore) -> None:
    long = {"id": "long", "command": "echo", "args": ["x" * 1_000_000]}
    with pytest.raises(InvalidJobError, match=r"tasks\[1\]: it is longer than 1000000 bytes"):
        store.submit("j", ["true", long], durable=False)
    assert not store.paths("j").directory.exists()
    store.submit("j", ["true"], durable=False)
    with pytest.raises(InvalidJobError, match=r"tasks\[0\]: it is longer than 1000000 bytes"):
        inbox.add_tasks(store, "j", [long])
    assert not inbox.requests(store)


def test_a_job_whose_state_would_be_too_long_is_refused(store: JobStore) -> None:
    with pytest.raises(InvalidJobError, match="too long"):
        store.submit("j", ["true"], outlets=["file:///" + "x" * 1_000_000], durable=False)
    assert not store.paths("j").directory.exists()


@pytest.mark.parametrize("at_once", [10_000, -1])
def test_tasks_share_the_names_of_their_fields(at_once: int) -> None:
    """Otherwise these would take more memory than all else of a task."""
    written = dump_tasks([Task(id=task_id, command="true") for task_id in "ab"])
    one, other = parsed(written, at_once)
    assert one.__pydantic_fields_set__ is other.__pydantic_fields_set__
    changed = one.evolve(status=TaskStatus.RUNNING)
    assert changed.__pydantic_fields_set__ is one.__pydantic_fields_set__
    assert "more" in one.evolve(more=1).__pydantic_fields_set__
    assert "more" not in other.__pydantic_fields_set__
