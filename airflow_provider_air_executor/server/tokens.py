"""The tokens by which clients on other machines are known: ``<base_path>/tokens.json``, which holds their hashes only.

A token is ``aex_<id>_<secret>``. Its secret has 256 random bits: SHA-256 hides it, since so many cannot be tried.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError, CorruptFileError, SettingsError
from airflow_provider_air_executor.jobs import changing, files

FILE, USED_FILE, LOCK_FILE = "tokens.json", "tokens.used.json", "tokens.lock"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN = re.compile(r"aex_([0-9a-f]{12})_[0-9a-f]{64}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_RESERVED = "unix"  # the name of those who come by the Unix socket
_LIMIT = 4_000_000  # bytes of the file
_COARSE = timedelta(hours=1)  # how exactly it is kept when a token was used last
_LONGEST = timedelta(days=36_500)


class Scope(enum.StrEnum):
    """What a token allows. Each scope includes those before it."""

    READ = "read"  # look at jobs, tasks, logs, masked results
    SUBMIT = "submit"  # submit jobs, and change those that were submitted with a token of the same name
    ADMIN = "admin"  # change all jobs, and control the manager

    def includes(self, other: Scope) -> bool:
        """Whether this scope allows what the other one does."""
        return _ORDER.index(self) >= _ORDER.index(other)


_ORDER = tuple(Scope)


class Token(NamedTuple):
    """What is known of a token; not the token itself."""

    id: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None  # to the hour

    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= datetime.now(tz=UTC)

    def as_json(self) -> dict[str, str | None]:
        """What the command line and the server show of it."""
        return {
            "name": self.name,
            "scope": self.scope.value,
            "created_at": _text(self.created_at),
            "expires_at": _text(self.expires_at),
            "last_used_at": _text(self.last_used_at),
        }


# Who comes by the Unix socket needs no token.
UNIX = Token("", _RESERVED, Scope.ADMIN, datetime.fromtimestamp(0, tz=UTC))


class InvalidTokenError(AirExecutorError):
    """A token is not accepted.

    :param why: a few words; it holds nothing of the token.
    :param name: of the token, where it is known.
    """

    def __init__(self, why: str, name: str = "") -> None:
        super().__init__(f"the token is not accepted: {why}; create one: air-executor token create")
        self.why = why
        self.name = name


class _Kept(NamedTuple):
    """A token as the file has it."""

    token: Token
    hash: str  # SHA-256 of the token, in hexadecimal


class Tokens:
    """The tokens of a base path.

    The file is read anew when it has changed, so that a token that is revoked is refused at once.

    :param base_path: the directory that holds ``jobs/``.
    """

    def __init__(self, base_path: Path) -> None:
        self._path = base_path / FILE
        self._used_path = base_path / USED_FILE
        self._lock_path = base_path / LOCK_FILE
        self._stamp: files.Stamp | None = None
        self._kept: Mapping[str, _Kept] = {}  # by their ids
        self._used: dict[str, datetime] | None = None  # None: it has not been read yet

    # -- the server --------------------------------------------------------------------------------------------

    def identify(self, text: str) -> Token:
        """The token that a client has sent.

        :raises InvalidTokenError: if it is not valid (any more), or the tokens cannot be read.
        """
        found = _TOKEN.fullmatch(text)
        kept = self._current().get(found[1]) if found is not None else None
        # The comparison takes as long for an unknown id: how long an answer takes tells nothing of the ids.
        is_same = hmac.compare_digest(_hash(text), kept.hash if kept is not None else "0" * 64)
        if kept is None or not is_same:
            raise InvalidTokenError("it is not known")
        if kept.token.is_expired():
            raise InvalidTokenError("it has expired", kept.token.name)
        self._note_use(kept.token.id)
        return kept.token

    def is_valid(self, token: Token) -> bool:
        """Whether a token that was accepted still is: it has neither expired nor been revoked."""
        if token is UNIX:
            return True
        try:
            kept = self._current().get(token.id)
        except InvalidTokenError:
            return False
        return kept is not None and not kept.token.is_expired()

    # -- the command line --------------------------------------------------------------------------------------

    def create(self, name: str, scope: Scope, lasts: timedelta | None = None, *, rotate: bool = False) -> str:
        """Make a token.

        :param name: letters, digits, ``_``, ``.`` and ``-``; jobs that are submitted with it keep it.
        :param lasts: for how long it is valid; None: until it is revoked.
        :param rotate: whether it takes the place of the token of this name, which is then refused.
        :return: the token, which cannot be read anywhere later.
        :raises SettingsError: if the name or the time is not valid, or there is a token of this name.
        :raises CorruptFileError: if the file cannot be read; it is not written then.
        :raises ManagerError: if another process changes the file, and does not come to an end.
        """
        _check(name, lasts)
        created_at = datetime.now(tz=UTC).replace(microsecond=0)
        token = Token(secrets.token_hex(6), name, scope, created_at, None if lasts is None else created_at + lasts)
        text = f"aex_{token.id}_{secrets.token_hex(32)}"
        with self._changing() as kept:
            others = [each for each in kept if each.token.name != name]
            is_there = len(others) < len(kept)
            if is_there and not rotate and not all(e.token.is_expired() for e in kept if e.token.name == name):
                raise SettingsError(f"there is a token {name!r} already; replace it (--rotate), or revoke it first")
            self._publish([*others, _Kept(token, _hash(text))])
        return text

    def all(self) -> list[Token]:
        """All tokens, by their names, also those that have expired.

        :raises CorruptFileError: if the file cannot be read.
        :raises OSError: if it cannot be read now.
        """
        used = self._load_used()
        tokens = [kept.token._replace(last_used_at=used.get(kept.token.id)) for kept in _read(self._path)]
        return sorted(tokens, key=lambda token: token.name)

    def revoke(self, name: str) -> Token:
        """Remove the token of a name: it is refused from now on.

        :raises SettingsError: if there is none.
        :raises CorruptFileError: if the file cannot be read; remove it, and all tokens are refused.
        :raises ManagerError: if another process changes the file, and does not come to an end.
        """
        with self._changing() as kept:
            gone = [each.token for each in kept if each.token.name == name]
            if not gone:
                raise SettingsError(f"there is no token {name!r}; `air-executor token list` lists them")
            self._publish([each for each in kept if each.token.name != name])
        return gone[0]

    # -- the file ----------------------------------------------------------------------------------------------

    def _current(self) -> Mapping[str, _Kept]:
        """All tokens, by their ids.

        :raises InvalidTokenError: if they cannot be read: then every token is refused.
        """
        try:
            stamp = files.stamp(self._path)
            if stamp != self._stamp:
                self._kept = {kept.token.id: kept for kept in _read(self._path)}
                self._stamp = stamp
        except (CorruptFileError, OSError) as error:
            self._stamp, self._kept = None, {}
            raise InvalidTokenError(f"the file of the tokens cannot be read ({type(error).__name__})") from error
        return self._kept

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[_Kept]]:
        """Be the only process that changes the file, and read it."""
        with changing.alone(self._lock_path, FILE):
            yield _read(self._path)

    def _publish(self, kept: list[_Kept]) -> None:
        content = {
            "tokens": [{"id": token.id, **_without_use(token.as_json()), "sha256": hash_} for token, hash_ in kept]
        }
        files.publish(self._path, json.dumps(content, indent=1).encode(), durable=True)

    # -- when a token was used last ----------------------------------------------------------------------------

    def _note_use(self, token_id: str) -> None:
        """Keep that a token is used; that is written once an hour only, into a file that nobody depends on."""
        now = datetime.now(tz=UTC)
        if self._used is None:
            self._used = self._load_used()
        last = self._used.get(token_id)
        if last is not None and abs(now - last) < _COARSE:
            return
        self._used = {id_: at for id_, at in self._used.items() if id_ in self._kept} | {token_id: now}
        with contextlib.suppress(OSError):
            content = {id_: _text(at) for id_, at in self._used.items()}
            files.publish(self._used_path, json.dumps(content, indent=1).encode())

    def _load_used(self) -> dict[str, datetime]:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            content = json.loads(files.read(self._used_path, limit=_LIMIT)[0])
            return {str(id_): _time(at) for id_, at in content.items()}
        return {}


def _check(name: str, lasts: timedelta | None) -> None:
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot be the name of a token: letters, digits, _ . -, at most 64")
    if name == _RESERVED:
        raise SettingsError(f"{name!r} is the name of those who come by the Unix socket; choose another one")
    if lasts is not None and not timedelta() < lasts <= _LONGEST:
        raise SettingsError("a token can be valid for more than nothing, and at most 100 years")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _read(path: Path) -> list[_Kept]:
    """The tokens in a file; none if there is no file.

    :raises CorruptFileError: if it is not valid.
    :raises OSError: if it cannot be read now.
    """
    try:
        data = files.read(path, limit=_LIMIT)[0]
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno not in (*files.ABSENT, files.TOO_LARGE):
            raise
        raise CorruptFileError(path, error.strerror or str(error)) from None
    try:
        return [_parse(fields) for fields in json.loads(data)["tokens"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptFileError(path, f"it is not valid ({error!r})") from None


def _parse(fields: Mapping[str, str]) -> _Kept:
    """A token of the file; what is not known of it is not guessed."""
    name, hash_ = fields["name"], fields["sha256"]
    if not _NAME.fullmatch(name) or name == _RESERVED or not _HASH.fullmatch(hash_):
        raise ValueError("a name or a hash is not valid")
    expires_at = None if fields["expires_at"] is None else _time(fields["expires_at"])
    return _Kept(Token(fields["id"], name, Scope(fields["scope"]), _time(fields["created_at"]), expires_at), hash_)


def _without_use(fields: dict[str, str | None]) -> dict[str, str | None]:
    return {key: value for key, value in fields.items() if key != "last_used_at"}


def _text(time_: datetime | None) -> str | None:
    return None if time_ is None else time_.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
