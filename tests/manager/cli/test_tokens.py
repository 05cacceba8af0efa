"""Tokens are created, listed and revoked."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.tokens import InvalidTokenError, Scope, Tokens


def test_a_token_is_printed_once(run: Any, store: JobStore) -> None:
    done = run("token", "create", "etl", "--scope", "submit", "--expires", "90d")
    assert done.returncode == 0
    assert re.fullmatch(r"aex_[0-9a-f]{12}_[0-9a-f]{64}\n", done.stdout)
    assert done.stdout.strip() not in done.stderr
    assert f"air-executor token revoke etl --base-path {store.base_path}" in done.stderr
    found = Tokens(store.base_path).identify(done.stdout.strip())
    assert (found.name, found.scope, found.expires_at is not None) == ("etl", Scope.SUBMIT, True)
    assert stat.S_IMODE((store.base_path / "tokens.json").stat().st_mode) == 0o600
    again = run("token", "create", "etl", "--scope", "read")
    assert again.returncode == 2
    assert "--rotate" in again.stderr
    rotated = run("token", "create", "etl", "--scope", "read", "--rotate")
    assert rotated.returncode == 0
    with pytest.raises(InvalidTokenError):
        Tokens(store.base_path).identify(done.stdout.strip())


def test_tokens_are_listed_without_what_they_are(run: Any, store: JobStore) -> None:
    assert run("token", "list").returncode == 1, "there is no job filesystem"
    store.create_directories()
    assert "there is no token" in run("token", "list").stdout
    text = run("token", "create", "etl", "--scope", "submit").stdout.strip()
    Tokens(store.base_path).create("pages", Scope.READ)
    Tokens(store.base_path).identify(text)
    shown = run("token", "list").stdout
    assert re.search(r"^etl +submit +20\S+Z +never +20\S+Z *$", shown, re.MULTILINE)
    assert re.search(r"^pages +read +20\S+Z +never +never *$", shown, re.MULTILINE)
    listed = run("token", "list", "--json").stdout
    assert [each["name"] for each in json.loads(listed)] == ["etl", "pages"]
    assert set(json.loads(listed)[0]) == {"name", "scope", "created_at", "expires_at", "last_used_at"}
    assert text.split("_")[1] not in shown + listed


def test_a_token_is_revoked(run: Any, store: JobStore) -> None:
    text = run("token", "create", "etl", "--scope", "admin").stdout.strip()
    assert run("token", "revoke", "etl").stdout == "token etl is revoked\n"
    with pytest.raises(InvalidTokenError):
        Tokens(store.base_path).identify(text)
    assert run("token", "revoke", "etl").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [("a/b", "--scope", "read"), ("etl",), ("etl", "--scope", "root"), ("etl", "--scope", "read", "--expires", "90")],
)
def test_what_is_not_valid_is_refused(run: Any, store: JobStore, arguments: tuple[str, ...]) -> None:
    done = run("token", "create", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert not (store.base_path / "tokens.json").exists()


def test_the_base_path_may_stand_before_the_command(run: Any, tmp_path: Path) -> None:
    done = run("--base-path", str(tmp_path / "other"), "token", "create", "etl", "--scope", "read")
    assert done.returncode == 0
    assert Tokens(tmp_path / "other").identify(done.stdout.strip()).name == "etl"
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700
