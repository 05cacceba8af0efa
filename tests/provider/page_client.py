"""The API of the pages as a user with some rights has it, without a server."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.plugin.access import Rights, rights_of
from airflow_provider_air_executor.plugin.app import app

ALL = ("seen", "hidden")
Client = Callable[..., TestClient]


class SomeRights(Rights):
    """Those of a user who sees and edits some DAGs, and sees Airflow's own jobs, or does not."""

    def __init__(self, sees: tuple[str, ...], edits: tuple[str, ...], *, is_admin: bool) -> None:
        super().__init__(
            SimpleNamespace(get_id=lambda: "ada", get_name=lambda: "Ada"), AirExecutorHook.default_conn_name
        )  # type: ignore[arg-type]
        self.__dict__ |= {"sees_jobs": is_admin, "edits_connection": is_admin}
        self._sees, self._edits = sees, edits

    def _ask(self, dag_id: str, entity: DagAccessEntity, method: str) -> bool:
        return dag_id in self._sees and (method == "GET" or dag_id in self._edits)


def client_with(sees: tuple[str, ...] = ALL, edits: tuple[str, ...] = ALL, *, is_admin: bool = True) -> TestClient:
    """The API as a user has it who sees these DAGs and may edit those."""
    app.dependency_overrides[get_user] = lambda: None
    app.dependency_overrides[rights_of] = lambda: SomeRights(sees, edits, is_admin=is_admin)
    return TestClient(app)


def forget_users() -> None:
    """Let the application ask for logins again."""
    app.dependency_overrides.clear()
