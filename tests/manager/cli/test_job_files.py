"""Files that describe jobs."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.manager.cli.job_files import read_jobs


def read(text: str, file_name: str = "dir/nightly.yaml", name: str | None = None) -> list[dict[str, Any]]:
    file = io.BytesIO(text.encode())
    file.name = file_name
    return read_jobs(file, name)


def test_yaml_with_lines_of_bash() -> None:
    (job,) = read("name: j\nlabels: {day: 2026-11-29}\ntasks:\n- bash: |\n    echo one\n    echo two\n- true -x\n")
    assert job == {
        "name": "j",
        "labels": {"day": "2026-11-29"},  # and no date
        "tasks": [{"bash": "echo one\necho two\n"}, "true -x"],
    }


def test_each_document_is_a_job() -> None:
    assert [job["name"] for job in read("name: a\ntasks: [x]\n---\nname: b\ntasks: [x]\n")] == ["a", "b"]
    with pytest.raises(InvalidJobError, match="has 2 jobs, and there is one --name"):
        read("tasks: [x]\n---\ntasks: [x]\n", name="j")


def test_a_name_is_made_up_of_that_of_the_file() -> None:
    (job,) = read("tasks: [x]")
    assert re.fullmatch("nightly-[0-9a-f]{8}", job["name"])
    (job,) = read('{"tasks": ["x"]}', "-")
    assert re.fullmatch("job-[0-9a-f]{8}", job["name"])
    assert read("tasks: [x]", name="mine")[0]["name"] == "mine"


@pytest.mark.parametrize("file_name", ["-", "job", "job.txt"])
def test_what_is_no_json_is_yaml_where_the_name_does_not_say(file_name: str) -> None:
    assert read("name: j\ntasks: [x]", file_name)[0]["name"] == "j"
    assert read('{"name": "j", "tasks": ["x"]}', file_name)[0]["name"] == "j"
    with pytest.raises(InvalidJobError, match="is not JSON"):
        read('{"name": ', file_name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "dir/nightly.yaml is neither JSON nor YAML: "),
        ("- x", "must be an object with name and tasks"),
        ("name: j", "tasks: the field is missing in dir/nightly.yaml"),
        ("tasks: [x]\ntaks: 1", "taks: there is no such field"),
        ("tasks: !!python/object:os.system [x]", "neither JSON nor YAML"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(text: str, says: str) -> None:
    with pytest.raises(InvalidJobError, match=re.escape(says)):
        read(text)
