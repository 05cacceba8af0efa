"""The record of an attempt."""

from __future__ import annotations

import os
import resource
import signal
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.jobs.attempt_record import Record, Used, claim, put_start, read_record

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
RUNS = Record(77, NOON, "token", None)
ZONES = st.integers(-12 * 60, 12 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=ZONES)  # noqa: DTZ001 - Hypothesis adds it
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=200)


@given(
    pid=st.integers(0, 10**18 - 1),
    started_at=TIMES,
    token=st.from_regex(r"[A-Za-z0-9_.-]{1,200}", fullmatch=True),
    end=st.tuples(st.none(), st.none(), st.just(False))
    | st.tuples(st.integers(-999, 999), st.none(), st.booleans())
    | st.tuples(st.none(), TEXTS, st.just(False)),
)
def test_it_is_read_as_it_was_written(
    pid: int, started_at: datetime, token: str, end: tuple[int | None, str | None, bool]
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "t.1"
        record = Record(pid, started_at, token, *end)
        path.write_bytes(record.text)
        assert read_record(path) == record


def test_of_two_shims_of_an_attempt_one_has_it(tmp_path: Path) -> None:
    os.close(claim(tmp_path / "t.1", RUNS))
    with pytest.raises(FileExistsError):
        claim(tmp_path / "t.1", RUNS._replace(pid=78))
    assert read_record(tmp_path / "t.1") == RUNS


def test_who_has_it_writes_the_end_behind(tmp_path: Path) -> None:
    descriptor = claim(tmp_path / "t.1", RUNS)
    os.write(descriptor, b"3\n")
    os.close(descriptor)
    assert read_record(tmp_path / "t.1") == RUNS._replace(exit_code=3)
    assert (tmp_path / "t.1").stat().st_mode & 0o777 == 0o600


USED = Used(61.25, 7_000_000)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (USED.text, USED),
        (Used(1.5).text, Used(1.5)),
        ("0m0.010s 0m0.000s\n1m1.200s 0m0.300s\n", Used(61.51)),
        ("memory 4096\n0m0,010s 0m0,000s\n0m0,200s 0m0,000s\n", Used(0.21, 4096)),
        ("", None),
        ("memory 4096\n", None),  # it is still being written
        ("0m0.010s 0m0.00", None),
        ("nothing like it\n", None),
    ],
)
def test_what_was_used_follows_the_end(tmp_path: Path, lines: str, found: Used | None) -> None:
    ended = RUNS._replace(exit_code=3)
    (tmp_path / "t.1").write_bytes(ended.text + lines.encode())
    assert read_record(tmp_path / "t.1") == ended._replace(used=found)


def test_what_was_used_stays_when_the_start_is_put_in(tmp_path: Path) -> None:
    ended = RUNS._replace(exit_code=0, used=USED)
    (tmp_path / "t.1").write_bytes(ended._replace(started_at=None).text)
    put_start(tmp_path / "t.1", ended)
    assert read_record(tmp_path / "t.1") == ended


def test_nobody_has_what_cannot_be_written_whole(tmp_path: Path) -> None:
    """Half a record would keep the attempt from being run, and tell nobody how it stands."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="No space left on device|File too large"):
            claim(tmp_path / "t.1", RUNS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_the_start_is_put_into_what_is_over_and_the_end_keeps_its_time(tmp_path: Path) -> None:
    path = tmp_path / "t.1"
    path.write_text("77 - token\n0 told\n")
    os.utime(path, (1, 1))
    handle = tmp_path / "t.1.on-slurm"
    handle.touch()
    os.utime(handle, (NOON.timestamp(), NOON.timestamp()))
    record = read_record(path, handle)
    assert record is not None
    assert record.started_at is not None
    put_start(path, record)
    assert read_record(path) == record
    assert record.got_sigterm
    assert path.stat().st_mtime == 1


def test_what_runs_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.1"
    path.write_text("77 - token\n")
    put_start(path, RUNS)
    assert path.read_text() == "77 - token\n"
