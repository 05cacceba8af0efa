"""A connection of Airflow's SSH provider, as the machine that is reached by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.remote.protocol import SshTarget

if TYPE_CHECKING:
    from airflow.sdk import Connection

# Extra fields that the provider had before; a connection that has one of them still means it.
_FORMER = {"no_host_key_check": "ignore_hostkey_verification"}


def ssh_target(connection: Connection) -> SshTarget:
    """How the machine of a connection is reached.

    The provider is not needed for this: its fields are read as it reads them, with one exception. The key of the
    machine is checked unless ``no_host_key_check`` is true, with any version of the provider, and
    ``allow_host_key_change`` does not change that.

    :param connection: of the type ``ssh``; see
        https://airflow.apache.org/docs/apache-airflow-providers-ssh/stable/connections/ssh.html.
    :raises SettingsError: naming the connection, if a field of it is not valid.
    """
    extra = connection.extra_dejson
    where = f"the SSH connection {connection.conn_id!r}"
    if not connection.host:
        raise SettingsError(f"{where} has no host")
    texts = ("key_file", "private_key", "private_key_passphrase", "host_key", "host_proxy_cmd")
    given = {name: _text(extra, name, where) for name in texts}
    if given["key_file"] and given["private_key"]:
        raise SettingsError(f"{where} has both a key_file and a private_key; give one")
    unchecked = _flag(extra, "no_host_key_check", where)
    if unchecked and given["host_key"]:
        raise SettingsError(f"{where} has a host_key, and no_host_key_check says that it is not checked; give one")
    return SshTarget(
        host=connection.host,
        port=connection.port,
        username=connection.login or None,
        password=connection.password or None,
        key_file=given["key_file"],
        private_key=given["private_key"],
        passphrase=given["private_key_passphrase"],
        host_key=given["host_key"],
        check_host_key=not unchecked,
        proxy_command=given["host_proxy_cmd"],
    )


def _text(extra: dict[str, Any], name: str, where: str) -> str | None:
    value = extra.get(name)
    if value is not None and not isinstance(value, str):
        raise SettingsError(f"{name} of {where} must be a text")
    return value or None


def _flag(extra: dict[str, Any], name: str, where: str) -> bool:
    value = extra.get(name, extra.get(_FORMER[name], False))
    found = {"true": True, "false": False, "": False, "none": False}.get(str(value).lower())
    if found is None:
        raise SettingsError(f"{name} of {where} must be true or false, not {value!r}")
    return found
