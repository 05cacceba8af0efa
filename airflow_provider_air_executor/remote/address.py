"""The address of a server as people write it: ``https://host:port``, or ``unix:///path`` of a socket here."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import SplitResult, urlsplit

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.remote.protocol import Target

SCHEMES = ("https://", "http://", "unix://")


def is_address(text: str) -> bool:
    """Whether this is meant to be the address of a server, and no path."""
    return text.startswith(SCHEMES)


def target_of(
    address: str,
    *,
    token: str = "",
    ca: str | None = None,
    client_cert: str | None = None,
    client_key: str | None = None,
    plain_text: bool = False,
    name: str = "",
) -> Target:
    """The server of an address.

    :param address: ``https://host:port``, where the path of a proxy may follow, or ``unix:///path``.
    :param token: a bearer token.
    :param ca: a file with the certificates that are trusted; None: those of the system.
    :param client_cert: a file with the client's certificate, and its key unless ``client_key`` has that.
    :param plain_text: whether ``http`` is allowed to other machines, too; otherwise to this one only.
    :param name: what has this address, for people.
    :raises SettingsError: if it is not valid.
    """
    whose = f"the address {address!r}" + (f" of {name}" if name else "")
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"{whose} is not valid: {error}") from None
    if "@" in parts.netloc:
        where = f"the address of {name}" if name else "the address of the server"
        raise SettingsError(f"{where} must not have a user or a password before its host; the token is given apart")
    if parts.query or parts.fragment:
        raise SettingsError(f"{whose} must not have a query or a fragment")
    if parts.scheme == "unix":
        return Target(socket=_socket(parts, whose), token=token, name=name)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{whose} must be https://host:port, http://localhost:port or unix:///path")
    if parts.scheme == "http" and not plain_text and not is_here(parts.hostname):
        raise SettingsError(
            f"{whose} is of another machine, and http is not encrypted: the token could be read on its way. Use https"
        )
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Target(url=url, token=token, ca=ca, client_cert=client_cert, client_key=client_key, name=name)


def _socket(parts: SplitResult, whose: str) -> str:
    if parts.netloc or not os.path.isabs(parts.path):
        raise SettingsError(f"{whose} must have an absolute path after unix://")
    return parts.path


def is_here(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
