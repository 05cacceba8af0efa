"""Names for jobs that nobody has named."""

from __future__ import annotations

import re

import pytest

from airflow_provider_air_executor.jobs.models import check_submitted_name
from airflow_provider_air_executor.jobs.names import made_up_name


@pytest.mark.parametrize(
    ("hint", "head"),
    [
        ("make", "make"),
        ("/usr/bin/python3.11", "python3-11"),
        ("./bin/", "bin"),
        ("été", "t"),
        ("", "job"),
        ("../..", "job"),
        ("-x" * 99, "x" + "-x" * 19),
    ],
)
def test_it_says_what_it_is_about(hint: str, head: str) -> None:
    name = made_up_name(hint)
    assert re.fullmatch(f"{head}-[0-9a-f]{{8}}", name)
    assert check_submitted_name(name) == name
    assert made_up_name(hint) != name
