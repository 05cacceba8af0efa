"""An auth manager whose viewers do not see everything, as those of production do it."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity, DagDetails
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

SEEN_DAG = "seen"
WITHOUT_LOGS = "carl"


class PerDagAuthManager(SimpleAuthManager):
    """Viewers see one DAG, one of them without its logs, and nothing of Airflow's own jobs."""

    def is_authorized_dag(
        self,
        *,
        method: Any,
        user: SimpleAuthManagerUser,
        access_entity: DagAccessEntity | None = None,
        details: DagDetails | None = None,
    ) -> bool:
        if not super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details):
            return False
        if access_entity is DagAccessEntity.TASK_LOGS and user.username == WITHOUT_LOGS:
            return False
        return user.role != "VIEWER" or (details is not None and details.id == SEEN_DAG)

    def is_authorized_view(self, *, access_view: AccessView, user: SimpleAuthManagerUser) -> bool:
        return access_view is not AccessView.JOBS or user.role != "VIEWER"
