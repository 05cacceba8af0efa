"""How a connection by SSH is made: whom it trusts, who it is, and what its errors mean."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
from typing import Any

import asyncssh

from airflow_provider_air_executor.exceptions import SshError
from airflow_provider_air_executor.remote.protocol import SshTarget

_PORT, _KNOWN_HOSTS = 22, "~/.ssh/known_hosts"
LOGIN_SECONDS = 30  # for a connection and a login; that of a cluster's login node may take ten
# A peer that does not answer is found after so many seconds times one more than so many requests.
ALIVE_SECONDS, ALIVE_COUNT = 8, 2

_library_log = logging.getLogger("asyncssh")
if _library_log.level == logging.NOTSET:
    _library_log.setLevel(logging.WARNING)  # it has a line for each connection and each request


class _Client(asyncssh.SSHClient):
    """Notes the key that a server shows, if it is not trusted."""

    def __init__(self) -> None:
        self.shown: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Trust no key that is not known; it is for the message."""
        self.shown = key
        return False


async def connect(target: SshTarget) -> asyncssh.SSHClientConnection:
    """Connect, and log in.

    What is not given comes from ``~/.ssh/config``, as with ``ssh``.

    :raises SshError: if that is of no use, however often it is tried.
    :raises OSError: if it cannot be reached now.
    """
    client = _Client()
    try:
        given = _options(target, client)
        options = await asyncssh.SSHClientConnectionOptions.construct(**given)
        if options.known_hosts is None and target.check_host_key:  # "UserKnownHostsFile none" in ~/.ssh/config
            options = await asyncssh.SSHClientConnectionOptions.construct(**{**given, "known_hosts": b""})
        return await asyncssh.connect(target.host, options=options)
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        raise SshError(_why_not_trusted(target, options, client.shown, error)) from error
    except asyncssh.PermissionDenied as error:
        raise SshError(
            f"{target.host} does not let user {options.username} in by SSH: {error.reason}; give a key "
            "(key_file or private_key) or a password that it accepts"
        ) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, asyncssh.ConfigParseError, ValueError) as error:
        raise SshError(f"the SSH connection to {target.host} is not valid: {error}") from error
    except FileNotFoundError as error:
        raise SshError(f"the SSH connection to {target.host} needs {error.filename}, which is not there") from error
    except asyncssh.Error as error:
        raise ConnectionError(error.reason) from error


def _options(target: SshTarget, client: _Client) -> dict[str, Any]:
    given: dict[str, Any] = {
        "config": (),  # ~/.ssh/config, which options would not read otherwise
        "client_factory": lambda: client,
        "host": target.host,
        "connect_timeout": LOGIN_SECONDS,
        "login_timeout": LOGIN_SECONDS,
        "keepalive_interval": ALIVE_SECONDS,
        "keepalive_count_max": ALIVE_COUNT,
        # Known kinds first, and then others: a server that has a new key of another kind must be able to show it.
        "server_host_key_algs": "+ssh-ed25519,ecdsa-sha2-*,rsa-sha2-*",
        "port": target.port or None,
        "username": target.username,
        "password": target.password or None,
        "passphrase": target.passphrase or None,
        "proxy_command": _proxy_command(target),
        "client_keys": _keys(target),
    }
    return {name: value for name, value in given.items() if value is not None} | _trusted(target)


def _trusted(target: SshTarget) -> dict[str, Any]:
    if not target.check_host_key:
        return {"known_hosts": None}
    if target.host_key:
        kind, _, rest = target.host_key.strip().partition(" ")
        line = target.host_key if rest else f"ssh-rsa {kind}"  # as Airflow's SSH provider reads it
        return {"known_hosts": ([asyncssh.import_public_key(line)], [], [])}
    return {} if target.known_hosts is None else {"known_hosts": os.path.expanduser(target.known_hosts)}


def _keys(target: SshTarget) -> list[Any] | None:
    if target.private_key:
        return [asyncssh.import_private_key(target.private_key, target.passphrase or None)]
    return [os.path.expanduser(target.key_file)] if target.key_file else None


def _proxy_command(target: SshTarget) -> str | None:
    if not target.proxy_command:
        return None
    values = {"%h": target.host, "%p": str(target.port or 22), "%r": _user(target)}
    command = target.proxy_command
    for token, value in values.items():
        command = command.replace(token, value)
    return command


def _user(target: SshTarget) -> str:
    return target.username or getpass.getuser()


def _why_not_trusted(
    target: SshTarget,
    options: asyncssh.SSHClientConnectionOptions,
    shown: asyncssh.SSHKey | None,
    error: asyncssh.Error,
) -> str:
    """What is wrong with a host key, and what to do; see :rfc:`4251`, section 4.1."""
    place = "the connection's host_key" if target.host_key else _place(options)
    name = options.host if options.port == _PORT else f"[{options.host}]:{options.port}"
    key = f"{shown.get_algorithm()} {shown.get_fingerprint()}" if shown is not None else str(error.reason)
    compare = "Compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on that machine; if it is"
    if target.host_key:
        return f"{name} has another SSH host key than {place} says ({key}). {compare} right, correct that"
    port = f"-p {options.port} " if options.port != _PORT else ""
    add = f"ssh-keyscan {port}{options.host} >> {place}"
    if _is_known(options):
        return (
            f"{name} has another SSH host key than {place} has for it ({key}): the machine was installed anew, or "
            f"another one answers in its place. {compare} right: ssh-keygen -R '{name}' && {add}"
        )
    return f"the SSH host key of {name} is not in {place} ({key}). {compare} right: {add}"


def _place(options: asyncssh.SSHClientConnectionOptions) -> str:
    """The file in which a host key is expected, as one writes it."""
    found: Any = options.known_hosts or _KNOWN_HOSTS
    return str(found[0] if isinstance(found, list) else found)


def _is_known(options: asyncssh.SSHClientConnectionOptions) -> bool:
    """Whether some host key is known of a machine."""
    found: Any = options.known_hosts or [os.path.expanduser(_KNOWN_HOSTS)]
    for path in found if isinstance(found, list) else [found]:
        with contextlib.suppress(OSError, ValueError):
            hosts = asyncssh.read_known_hosts(str(path))
            port = None if options.port == _PORT else options.port
            if any(hosts.match(options.host_key_alias or options.host, "", port)):
                return True
    return False
