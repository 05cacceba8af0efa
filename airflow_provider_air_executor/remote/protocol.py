"""What a client and a server agree on: the version of the protocol, and how errors are sent.

An error is a problem of RFC 9457, whose type says which exception it was. The client raises it again, with its facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.exceptions import (
    AccessError,
    AirExecutorError,
    BasePathError,
    CorruptFileError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobRemovedError,
    JobStateError,
    ManagerError,
    NoLocksError,
    NotRemovedError,
    OutputError,
    ProtocolError,
    SettingsError,
)

LOWEST, HIGHEST = 1, 1  # the versions of the protocol that are spoken here
PROTOCOL_HEADER, VERSION_HEADER = "Air-Executor-Protocol", "Air-Executor-Version"
PROBLEM_TYPE = "urn:air-executor:"

# The attributes of the exceptions, by the names that they have in a problem.
_FACTS = {"name": "job_name"} | {
    name: name for name in ("base_path", "ended", "owner", "path", "task_id", "whose", "why")
}
_PATHS = ("base_path", "path")


class LockedError(AirExecutorError):
    """Another one holds a lock."""


class MissingError(AirExecutorError):
    """There is no such thing in a job, a task for instance."""


class UnavailableError(AirExecutorError, OSError):
    """What is asked for cannot be read now."""


# Of which class an exception is, by the word at the end of the type of the problem.
_ERRORS: dict[str, type[AirExecutorError]] = {
    "base-path": BasePathError,
    "corrupt-file": CorruptFileError,
    "forbidden": AccessError,
    "invalid-job": InvalidJobError,
    "invalid-request": InvalidJobError,
    "job-exists": JobExistsError,
    "job-not-found": JobNotFoundError,
    "job-removed": JobRemovedError,
    "job-state": JobStateError,
    "locked": LockedError,
    "manager": ManagerError,
    "no-locks": NoLocksError,
    "not-found": MissingError,
    "not-removed": NotRemovedError,
    "output": OutputError,
    "protocol": ProtocolError,
    "settings": SettingsError,
    "too-large": InvalidJobError,
    "unauthorized": AccessError,
    "unavailable": UnavailableError,
}


class SshTarget(NamedTuple):
    """How a machine is reached by SSH.

    :param private_key: the key itself, as text; ``key_file`` is the path of one.
    :param known_hosts: the path of the file of known host keys; None: ``~/.ssh/known_hosts``.
    :param host_key: a line of such a file without the name, if the key is known from elsewhere.
    :param check_host_key: False: whoever answers is trusted.
    :param proxy_command: a command line whose input and output are the connection; ``%h``, ``%p`` and ``%r`` in it are
        the host, the port and the user.
    """

    host: str
    port: int | None = None
    username: str | None = None
    password: str | None = None
    key_file: str | None = None
    private_key: str | None = None
    passphrase: str | None = None
    known_hosts: str | None = None
    host_key: str | None = None
    check_host_key: bool = True
    proxy_command: str | None = None

    def __repr__(self) -> str:
        return f"SshTarget({self.host!r}, port={self.port}, username={self.username!r})"  # the others are secrets


class Target(NamedTuple):
    """A job filesystem on another machine, and how it is reached.

    :param url: of the server: ``https://host:port``; or else there is a ``socket`` or ``ssh``.
    :param socket: the path of the server's Unix socket on this machine.
    :param token: a bearer token; empty: none.
    :param ca: a file with the certificates that are trusted; None: those of the system.
    :param client_cert: a file with the client's certificate, and its key unless ``client_key`` has that.
    :param base_path: of the job filesystem, where a server is to be started; None: what the server says.
    :param command: ``air-executor`` on the other machine, where it is not in the ``PATH``.
    :param embedded: whether the other machine starts a manager if none runs.
    :param name: what people call it: a connection, for instance.
    """

    url: str | None = None
    socket: str | None = None
    token: str = ""
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    ssh: SshTarget | None = None
    base_path: str | None = None
    command: str = "air-executor"
    embedded: bool = False
    name: str = ""

    @property
    def where(self) -> str:
        """Where it is, for people; without the token."""
        if self.ssh is not None:
            user = f"{self.ssh.username}@" if self.ssh.username else ""
            port = f":{self.ssh.port}" if self.ssh.port else ""
            return f"ssh://{user}{self.ssh.host}{port}{self.base_path or ''}"
        return self.url or f"unix://{self.socket}"

    def __repr__(self) -> str:
        return f"Target({self.where!r})"  # the token is a secret


def code_of(body: Mapping[str, Any]) -> str:
    """The code of a problem; empty if it is not one of ours."""
    kind = body.get("type")
    return kind.removeprefix(PROBLEM_TYPE) if isinstance(kind, str) and kind.startswith(PROBLEM_TYPE) else ""


def error_of(body: Mapping[str, Any]) -> AirExecutorError:
    """The exception that a problem is, to be raised again, with the sentence and the facts of the other machine."""
    kind: Any = _ERRORS.get(code_of(body), AirExecutorError)
    detail = str(body.get("detail") or body.get("title") or "no reason is given")
    # Not by its own parameters: they would put another sentence together.
    error: AirExecutorError = kind.__new__(kind, detail)
    error.args = (detail,)
    for name, fact in body.items():
        if name in _FACTS and isinstance(fact, str):
            setattr(error, _FACTS[name], Path(fact) if name in _PATHS else fact)
    return error
