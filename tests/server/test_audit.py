"""The audit log of the server."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from airflow_provider_air_executor.server import audit
from airflow_provider_air_executor.server.audit import FILE, Audit
from airflow_provider_air_executor.server.tokens import Scope, Tokens


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_change_is_a_line(tmp_path: Path):
    Audit(tmp_path).record("cancel", token="etl", scope="submit", address="192.0.2.1", job="a", outcome="done")
    [line] = lines(tmp_path / FILE)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "token": "etl",
        "scope": "submit",
        "address": "192.0.2.1",
        "action": "cancel",
        "job": "a",
        "outcome": "done",
    }
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_token_is_never_written(tmp_path: Path):
    text = Tokens(tmp_path).create("etl", Scope.READ)
    Audit(tmp_path).record("login", token=text, scope=f"x{text}", address=text.upper(), job=text * 2, outcome=text)
    written = (tmp_path / FILE).read_text().lower()
    assert text.rpartition("_")[2] not in written
    assert text.split("_")[1] not in written


@pytest.mark.parametrize("name", ["a\nb", '"}\n{"x": "', "\udcff", "ä\x00", "x" * 100_000])
def test_what_a_client_says_is_one_line(tmp_path: Path, name: str):
    Audit(tmp_path).record("submit", token="etl", scope="submit", address="", job=name)
    data = (tmp_path / FILE).read_bytes()
    assert data.count(b"\n") == 1
    assert data.isascii()
    assert len(data) < 5_000
    assert json.loads(data)["job"] == name[:500]


def test_the_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit, "MAX_BYTES", 1_000)
    log = Audit(tmp_path)
    for number in range(100):
        log.record("cancel", token="etl", scope="submit", address="", job=str(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [FILE, *(f"{FILE}.{number}" for number in range(1, audit.KEPT + 1))]
    kept = [line["job"] for name in [*reversed(names[1:]), FILE] for line in lines(tmp_path / name)]
    assert kept == [str(number) for number in range(100 - len(kept), 100)], "the last lines, in their order"
    assert all(path.stat().st_size <= 1_000 for path in tmp_path.iterdir())


def test_lines_of_several_threads_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit, "MAX_BYTES", 20_000)
    log = Audit(tmp_path)

    def write(number: int) -> None:
        for _ in range(50):
            log.record("cancel", token=str(number), scope="submit", address="")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(lines(path)) for path in tmp_path.iterdir()) == 200


def test_what_cannot_be_written_is_in_the_log_of_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.ERROR):
        Audit(tmp_path).record("cancel", token="etl", scope="submit", address="", job="a")
    assert '"action": "cancel"' in caplog.text
    assert not (tmp_path / "elsewhere").exists()
