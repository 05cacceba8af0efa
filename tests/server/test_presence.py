"""The server of a base path, as other processes see it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import ServerRunningError
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server import presence


def test_none_runs_where_nothing_is(store: JobStore) -> None:
    assert not presence.is_running(store)
    assert presence.running(store) is None
    store.create_directories()
    assert presence.running(store) is None


def test_one_holds_a_base_path_and_says_where_it_answers(store: JobStore) -> None:
    with presence.holding(store, replaces_temporary=True) as is_ours:
        assert presence.is_running(store)
        assert presence.running(store) is None, "it does not answer yet"
        presence.publish(store, socket="/s", listen=["http://x"])
        info = presence.running(store)
        assert info is not None
        assert (info.pid, info.socket, info.listen, info.is_temporary) == (os.getpid(), "/s", ("http://x",), False)
        with (
            pytest.raises(ServerRunningError, match=f"process {os.getpid()}"),
            presence.holding(store, replaces_temporary=True),
        ):
            pass
        assert is_ours()
        (store.base_path / presence.LOCK).unlink()
        assert not is_ours()
    assert presence.running(store) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null", '{"pid": 1}'])
def test_what_is_not_valid_says_nothing(store: JobStore, text: str) -> None:
    with presence.holding(store, replaces_temporary=False):
        (store.base_path / presence.INFO).write_text(text)
        assert presence.running(store) is None


def test_what_a_server_that_was_killed_has_said_does_not_count(store: JobStore) -> None:
    store.create_directories()
    (store.base_path / presence.INFO).write_text(json.dumps({"pid": 1}))
    with presence.holding(store, replaces_temporary=False):
        assert not (store.base_path / presence.INFO).exists()


def test_a_process_that_is_no_server_is_not_ended(store: JobStore) -> None:
    """The number in the file may be that of another process by now: this one would be ended here."""
    presence.end(presence.ServerInfo(os.getpid(), "", ""))


def test_the_socket_is_in_the_base_path_if_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert presence.socket_path(JobStore("/b")) == Path("/b/server.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    long = presence.socket_path(JobStore("/" + "x" * 100))
    assert long.parent == Path(f"/tmp/air-executor-{os.geteuid()}")
    assert presence.socket_path(JobStore("/" + "y" * 100)) != long
    assert presence.socket_path(JobStore("/" + "x" * 100)) == long
