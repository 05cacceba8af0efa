"""Tokens: what is kept of them, and when they are accepted."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import CorruptFileError, SettingsError
from airflow_provider_air_executor.server import tokens as module
from airflow_provider_air_executor.server.tokens import UNIX, InvalidTokenError, Scope, Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path)


def refused(tokens: Tokens, text: str) -> str:
    with pytest.raises(InvalidTokenError) as error:
        tokens.identify(text)
    assert text[-20:] not in str(error.value)
    return error.value.why


def set_expiry(tmp_path: Path, at: datetime) -> None:
    """Change when the one token expires, as time would."""
    path = tmp_path / module.FILE
    content = json.loads(path.read_text())
    content["tokens"][0]["expires_at"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    path.write_text(json.dumps(content))


def test_a_token_is_accepted_and_says_who_it_is(tokens: Tokens):
    text = tokens.create("etl", Scope.SUBMIT)
    found = tokens.identify(text)
    assert (found.name, found.scope, found.expires_at) == ("etl", Scope.SUBMIT, None)
    assert tokens.is_valid(found)


def test_only_a_hash_of_a_token_is_kept(tokens: Tokens, tmp_path: Path):
    text = tokens.create("etl", Scope.ADMIN)
    tokens.identify(text)
    assert len(text.rpartition("_")[2]) == 64, "256 bits"
    for path in tmp_path.iterdir():
        assert text.rpartition("_")[2] not in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
    assert tokens.create("other", Scope.ADMIN) != text


def test_a_scope_includes_those_before_it():
    order = [Scope.READ, Scope.SUBMIT, Scope.ADMIN]
    for place, scope in enumerate(order):
        assert [scope.includes(other) for other in order] == [place >= other for other in range(3)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aex_",
        "aex_000000000000_" + "0" * 64,
        "Bearer x",
        "\x00",
        "ä" * 100,
        "\udcff",
        "aex_0123456789ab_" + "\N{ARABIC-INDIC DIGIT ZERO}" * 64,
        "a" * 1_000_000,
    ],
)
def test_what_is_no_token_is_refused(tokens: Tokens, text: str):
    tokens.create("etl", Scope.READ)
    with pytest.raises(InvalidTokenError):
        tokens.identify(text)


def test_a_token_with_another_secret_is_refused(tokens: Tokens):
    text = tokens.create("etl", Scope.READ)
    other = text[:-1] + ("0" if text[-1] != "0" else "1")
    assert refused(tokens, other) == "it is not known"
    assert refused(tokens, text + "0") == "it is not known"
    assert refused(tokens, text.upper()) == "it is not known"
    assert refused(tokens, f"{text}\n") == "it is not known"


def test_a_revoked_token_is_refused_at_once(tokens: Tokens, tmp_path: Path):
    text = tokens.create("etl", Scope.READ)
    found = tokens.identify(text)
    Tokens(tmp_path).revoke("etl")  # by another process
    assert refused(tokens, text) == "it is not known"
    assert not tokens.is_valid(found)


def test_an_expired_token_is_refused(tokens: Tokens, tmp_path: Path):
    text = tokens.create("etl", Scope.READ, timedelta(days=90))
    found = tokens.identify(text)
    assert found.expires_at is not None
    assert abs(found.expires_at - datetime.now(tz=UTC) - timedelta(days=90)) < timedelta(hours=1)
    set_expiry(tmp_path, datetime.now(tz=UTC) - timedelta(seconds=2))
    assert refused(tokens, text) == "it has expired"
    assert not tokens.is_valid(found)
    assert Tokens(tmp_path).create("etl", Scope.READ), "an expired one may be replaced"


def test_there_is_one_token_of_a_name(tokens: Tokens):
    first = tokens.create("etl", Scope.READ)
    with pytest.raises(SettingsError, match="--rotate"):
        tokens.create("etl", Scope.READ)
    found = tokens.identify(first)
    second = tokens.create("etl", Scope.SUBMIT, rotate=True)
    assert refused(tokens, first) == "it is not known"
    assert not tokens.is_valid(found)
    assert tokens.identify(second).scope is Scope.SUBMIT
    assert [each.name for each in tokens.all()] == ["etl"]


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a/b", "a\n", "unix"])
def test_a_name_that_is_not_valid_is_refused(tokens: Tokens, name: str):
    with pytest.raises(SettingsError):
        tokens.create(name, Scope.READ)
    assert tokens.all() == []


@pytest.mark.parametrize("lasts", [timedelta(), timedelta(days=-1), timedelta(days=40_000)])
def test_a_time_that_is_not_valid_is_refused(tokens: Tokens, lasts: timedelta):
    with pytest.raises(SettingsError):
        tokens.create("etl", Scope.READ, lasts)


def test_a_token_that_is_not_there_cannot_be_revoked(tokens: Tokens):
    with pytest.raises(SettingsError, match="token list"):
        tokens.revoke("etl")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "x", '{"tokens": 1}', '{"tokens": [{"name": "a"}]}', "\x00", "[" * 100_000, '{"tokens": [1]}'],
)
def test_a_file_that_cannot_be_read_refuses_everybody(tokens: Tokens, tmp_path: Path, content: str):
    text = tokens.create("etl", Scope.READ)
    found = tokens.identify(text)
    path = tmp_path / module.FILE
    kept = path.read_text()
    path.write_text(content)
    assert "cannot be read" in refused(tokens, text)
    assert not tokens.is_valid(found)
    with pytest.raises(CorruptFileError):
        tokens.create("other", Scope.READ)
    assert path.read_text() == content, "it is not written over"
    path.write_text(kept)
    assert tokens.identify(text).name == "etl"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scope", "root"),
        ("name", "unix"),
        ("name", "a/b"),
        ("sha256", ""),
        ("expires_at", "soon"),
        ("created_at", None),
    ],
)
def test_a_field_that_is_not_valid_is_not_guessed(tokens: Tokens, tmp_path: Path, field: str, value: object):
    text = tokens.create("etl", Scope.READ)
    path = tmp_path / module.FILE
    content = json.loads(path.read_text())
    content["tokens"][0][field] = value
    path.write_text(json.dumps(content))
    assert "cannot be read" in refused(tokens, text)


def test_a_link_in_place_of_the_file_is_not_followed(tokens: Tokens, tmp_path: Path):
    text = tokens.create("etl", Scope.READ)
    path = tmp_path / module.FILE
    os.rename(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in refused(tokens, text)


def test_the_hour_of_the_last_use_is_kept(tokens: Tokens, tmp_path: Path):
    text = tokens.create("etl", Scope.READ)
    assert tokens.all()[0].last_used_at is None
    tokens.identify(text)
    used = tmp_path / module.USED_FILE
    stamp = used.stat().st_mtime_ns
    for _ in range(100):
        tokens.identify(text)
    assert used.stat().st_mtime_ns == stamp, "it is written once an hour"
    assert Tokens(tmp_path).all()[0].last_used_at is not None
    used.write_text("[")
    Tokens(tmp_path).identify(text)
    assert Tokens(tmp_path).all()[0].last_used_at is not None, "a file that is not valid is replaced"


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path):
    def create(number: int) -> None:
        Tokens(tmp_path).create(f"t{number}", Scope.READ)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.name for each in Tokens(tmp_path).all()) == sorted(f"t{number}" for number in range(12))


def test_who_comes_by_the_unix_socket_stays_valid(tokens: Tokens):
    assert tokens.is_valid(UNIX)
