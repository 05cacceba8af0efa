"""Databases for both transfers: any connection of common-sql.

That is one whose hook is a :class:`~airflow.providers.common.sql.hooks.sql.DbApiHook`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.sql.hooks.sql import DbApiHook
from airflow.sdk import BaseHook


def database_hook(conn_id: str, hook_params: Mapping[str, Any] | None) -> DbApiHook:
    """The hook of a connection to a database.

    :raises ValueError: if it is a connection to something else.
    """
    hook = BaseHook.get_connection(conn_id).get_hook(hook_params=dict(hook_params or {}))
    if not isinstance(hook, DbApiHook):
        raise ValueError(f"conn_id: {conn_id!r} is no connection to a database, its hook is {type(hook).__name__}")
    return hook


def row_values(row: Any, columns: Sequence[str]) -> list[Any]:
    """The values of a row; some connections are set up to give dicts."""
    return [row[column] for column in columns] if isinstance(row, Mapping) else list(row)
