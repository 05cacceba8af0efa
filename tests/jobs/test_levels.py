"""The level of a line that a task has printed."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.jobs.levels import level_of

DEBUG, INFO, WARNING, ERROR, CRITICAL = (
    logging.DEBUG,
    logging.INFO,
    logging.WARNING,
    logging.ERROR,
    logging.CRITICAL,
)


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("", INFO),
        ("step 1 of 7", INFO),
        ("INFO step 1", INFO),
        ("DEBUG step 1", DEBUG),
        ("ERROR the disk is full", ERROR),
        ("ERROR: the disk is full", ERROR),
        ("ERROR:root:the disk is full", ERROR),
        ("[ERROR] the disk is full", ERROR),
        ("<ERROR> the disk is full", ERROR),
        ("  WARNING  the disk is nearly full", WARNING),
        ("WARN - low", WARNING),
        ("FATAL", CRITICAL),
        ("CRITICAL|x", CRITICAL),
        ("\x1b[31mERROR\x1b[0m the disk is full", ERROR),
        ("[12:00:01] ERROR the disk is full", ERROR),
        ("[2026-11-29 12:00:01,123] {job.py:17} ERROR - the disk is full", ERROR),
        ("2026-11-29 12:00:01,123 - loader.disk - WARNING - nearly full", WARNING),
        ("2026-11-29T12:00:01.123Z ERROR loader: the disk is full", ERROR),
        ("2026-11-29T12:00:01.123+00:00 [error] the disk is full", ERROR),
        ("2026/11/29 12:00:01 [warn] 17#17: low", WARNING),
        ("26/11/29 12:00:01 ERROR Executor: exception in task", ERROR),
        ("Nov 29 12:00:01 ERROR disk", ERROR),
        ("12:00:01.123 [main] WARN  org.example.Main - low", WARNING),
        ("2026-11-29 12:00:01 | ERROR    | loader:main:17 - full", ERROR),
        ("error: no such file", ERROR),
        ("Error: no such file", ERROR),
        ("warning: unused variable", WARNING),
        ("fatal: not a git repository", CRITICAL),
        ('time="2026-11-29T12:00:01Z" level=error msg="full"', ERROR),
        ("ts=1 level=warn msg=low", WARNING),
        ('{"level": "error", "msg": "full"}', ERROR),
        ('{"severity": "WARNING", "message": "low"}', WARNING),
        ('{"levelname": "CRITICAL"}', CRITICAL),
        ('{"log.level": "warn"}', WARNING),
        ('{"level": 50, "msg": "pino"}', ERROR),
        ('{"level": 30, "msg": "pino"}', INFO),
        ('{"levelno": 30, "msg": "python"}', WARNING),
        ('{"level": "odd"}', INFO),
        ('{"level": true}', INFO),
        ('{"rows": 3, "error": null}', INFO),
        ('{"level": "error"', INFO),
        ("Traceback (most recent call last):", ERROR),
        # What only looks like it.
        ("ERRORS: 0", INFO),
        ("ERROR_COUNT=0", INFO),
        ("DEBUG=1 make", INFO),
        ("error handling is on", INFO),
        ("Warning signs", INFO),
        ("no ERROR was found", INFO),
        ("finished with 0 error: none", INFO),
        ("12 ERRORS", INFO),
        ("information: none", INFO),
    ],
)
def test_the_level(line: str, level: int) -> None:
    assert level_of(line) == level


@given(st.text() | st.text(alphabet='[]{}() :-|"ERORWAN0123456789.,', max_size=300))
def test_every_line_has_one(line: str) -> None:
    assert level_of(line) in (DEBUG, INFO, WARNING, ERROR, CRITICAL)
    assert level_of("{" * 5000 + line) in (DEBUG, INFO, WARNING, ERROR, CRITICAL)
