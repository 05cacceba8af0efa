"""Who answers, and in which words."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.remote.protocol import HIGHEST, LOWEST
from airflow_provider_air_executor.server.access import READ, TokenDep
from airflow_provider_air_executor.server.messages import Health, Hello, Token, Versions
from airflow_provider_air_executor.server.problems import may_answer
from airflow_provider_air_executor.server.service import JobsDep, ServiceDep

router = APIRouter(tags=["server"])


@router.get("/health", responses={code: said for code, said in may_answer().items() if code == 400})
async def get_health() -> Health:
    """That the server answers; nothing is looked at for it."""
    return Health(status="ok")


@router.get("/hello", responses=may_answer(), dependencies=[READ])
def get_hello(token: TokenDep, service: ServiceDep, jobs: JobsDep) -> Hello:
    """Which protocol is spoken, whose token it is, and which manager runs the jobs."""
    manager = jobs.manager()
    return Hello(
        protocol=Versions(lowest=LOWEST, highest=HIGHEST),
        version=__version__,
        base_path=jobs.where,
        token=Token(name=token.name, scope=token.scope, expires_at=token.expires_at),
        manager=manager and manager.as_json(),
        embedded=service.embedded,
    )


@router.get("/openapi.json", responses=may_answer(), dependencies=[READ])
async def get_openapi(request: Request) -> dict[str, Any]:
    """This API, described in OpenAPI's way."""
    described: dict[str, Any] = request.app.openapi()
    return described
