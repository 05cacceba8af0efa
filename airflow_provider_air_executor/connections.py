"""What a connection of Airflow says: where the job filesystem is, and how it is reached.

With a host, or the connection of an SSH server, it is on another machine; otherwise it is a directory of this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from airflow_provider_air_executor.jobs import files

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.protocol import SshTarget, Target


class Location(NamedTuple):
    """A directory of this machine, and whether we start its manager."""

    base_path: str
    embedded: bool


class Connection(Protocol):
    """A connection of Airflow, as far as it is read here."""

    @property
    def host(self) -> str | None:
        """A name or an address, or also a URL or the path of a socket."""

    @property
    def port(self) -> int | None:
        """Where the server listens."""

    @property
    def schema(self) -> str | None:
        """``https`` or ``http``."""

    @property
    def password(self) -> str | None:
        """The token."""

    @property
    def extra_dejson(self) -> dict[str, Any]:
        """All else."""


def location_of(
    connection: Connection, whose: str, default_base_path: str, ssh: Callable[[str], SshTarget]
) -> Location | Target:
    """Where the job filesystem of a connection is.

    :param whose: the connection, for errors.
    :param default_base_path: of this machine, if the connection does not say.
    :param ssh: gives the SSH server of another connection, by its id.
    :raises ValueError: if a field of the connection is not valid.
    """
    extra = connection.extra_dejson
    embedded = _truth(extra, "embedded", whose)
    ssh_conn_id = _text(extra, "ssh_conn_id", whose)
    if ssh_conn_id or connection.host:
        return _target(connection, whose, embedded=embedded, ssh=ssh(ssh_conn_id) if ssh_conn_id else None)
    base_path = extra.get("base_path") or default_base_path
    if not isinstance(base_path, str) or not os.path.isabs(files.expanded(base_path)):
        raise ValueError(f"base_path of {whose} must be an absolute path, not {base_path!r}")
    return Location(base_path, embedded)


def _target(connection: Connection, whose: str, *, embedded: bool, ssh: SshTarget | None) -> Target:
    """The server on another machine."""
    from airflow_provider_air_executor.remote.protocol import Target

    extra = connection.extra_dejson
    token, base_path = (connection.password or "").strip(), _text(extra, "base_path", whose)
    if ssh is None:
        return _server(connection, whose)._replace(base_path=base_path, embedded=embedded)
    if connection.host:
        raise ValueError(f"{whose} has a host and an ssh_conn_id: one of them says where the manager is")
    command = _text(extra, "command", whose) or "air-executor"
    return Target(ssh=ssh, token=token, base_path=base_path, command=command, embedded=embedded, name=whose)


def _server(connection: Connection, whose: str) -> Target:
    """A server that listens on TCP, or on a socket of this machine."""
    from airflow_provider_air_executor.remote import address

    extra = connection.extra_dejson
    return address.target_of(
        _address(connection, whose),
        token=(connection.password or "").strip(),
        ca=_path(extra, "ca", whose),
        client_cert=_path(extra, "client_cert", whose),
        client_key=_path(extra, "client_key", whose),
        plain_text=_truth(extra, "insecure_plain_text", whose),
        name=whose,
    )


def _address(connection: Connection, whose: str) -> str:
    """The address of the server; the host may be all of it."""
    host, schema = connection.host or "", connection.schema or "https"
    if schema not in ("https", "http"):
        raise ValueError(f"schema of {whose} must be https or http, not {schema!r}")
    if host.startswith("/"):
        return f"unix://{host}"
    if "://" in host:
        return host
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"  # IPv6
    return f"{schema}://{host}" + (f":{connection.port}" if connection.port else "")


def _text(extra: Mapping[str, Any], name: str, whose: str) -> str | None:
    value = extra.get(name) or None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} of {whose} must be a text, not {value!r}")
    return value


def _path(extra: Mapping[str, Any], name: str, whose: str) -> str | None:
    value = _text(extra, name, whose)
    path = None if value is None else files.expanded(value)
    if path is not None and not os.path.isabs(path):
        raise ValueError(f"{name} of {whose} must be the absolute path of a file, not {value!r}")
    return path


def _truth(extra: Mapping[str, Any], name: str, whose: str) -> bool:
    value = extra.get(name) or False
    if isinstance(value, str):  # all extras of a URI are texts
        value = {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise ValueError(f"{name} of {whose} must be true or false, not {value!r}")
    return value
