"""Errors arrive as they were: the same class, sentence and facts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_core import from_json, to_json

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    InvalidJobError,
    JobNotFoundError,
    OutputError,
    ProtocolError,
)
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.models import TaskStatus
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.remote.protocol import Target, code_of, error_of
from airflow_provider_air_executor.remote.records import parsed_tuple


def test_what_an_attempt_has_used_arrives_and_what_is_not_known_here_is_passed_over() -> None:
    attempt = AttemptRecord("a", 1, TaskStatus.FAILED, usage=Usage(cpu_seconds=1.5, max_memory=7))
    content = from_json(to_json(attempt._asdict()))
    assert parsed_tuple(AttemptRecord, {**content, "later": 1}) == attempt
    del content["usage"]
    assert parsed_tuple(AttemptRecord, content) == attempt._replace(usage=None)
    with pytest.raises(ProtocolError):
        parsed_tuple(AttemptRecord, ["a"])


def problem(code: str, detail: str, **facts: str) -> dict[str, object]:
    return {"type": f"urn:air-executor:{code}", "title": "x", "status": 400, "detail": detail, **facts}


def test_an_error_arrives_with_its_sentence_and_its_facts() -> None:
    error = error_of(problem("job-not-found", "there is no job", name="j", base_path="/base"))
    assert type(error) is JobNotFoundError
    assert str(error) == "there is no job"
    assert (error.job_name, error.base_path) == ("j", Path("/base"))
    error = error_of(problem("output", "no JSON", name="j", task_id="t", why="it is none", more="x"))
    assert type(error) is OutputError
    assert vars(error) == {"job_name": "j", "task_id": "t", "why": "it is none"}
    assert type(error_of(problem("invalid-job", "tasks[0]: is missing"))) is InvalidJobError


@pytest.mark.parametrize(
    "body", [{}, {"type": "about:blank", "title": "Gone"}, {"type": 3, "detail": ""}, problem("too-many", "wait")]
)
def test_a_problem_of_another_kind_is_an_error_in_its_words(body: dict[str, object]) -> None:
    error = error_of(body)
    assert type(error) is AirExecutorError
    assert str(error) in ("no reason is given", "Gone", "wait")
    assert code_of(body) in ("", "too-many")


def test_a_target_does_not_show_its_token() -> None:
    assert "secret" not in repr(Target(url="https://host:1", token="secret"))
