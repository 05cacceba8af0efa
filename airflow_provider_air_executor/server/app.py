"""The application: all routes below ``/v1``, and what each request passes before one of them answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs.models import SubmittedBy
from airflow_provider_air_executor.server import messages, problems
from airflow_provider_air_executor.server.bodies import INPUT, SCHEMA
from airflow_provider_air_executor.server.gate import Gate
from airflow_provider_air_executor.server.limits import RequestLimits
from airflow_provider_air_executor.server.load import Load
from airflow_provider_air_executor.server.routes import (
    changes,
    completions,
    controlling,
    reading,
    records,
    submitting,
    welcome,
)
from airflow_provider_air_executor.server.service import Service

PREFIX = "/v1"

_BODIES: tuple[type[BaseModel], ...] = (
    messages.Submission,
    messages.Cancel,
    messages.Retry,
    messages.Addition,
    messages.Query,
    messages.Positions,
    messages.Offsets,
    messages.ControlChange,
    SubmittedBy,
    *completions.BODIES,
)


def create_app(service: Service) -> Any:
    """What answers all requests about a job filesystem."""
    return Gate(RequestLimits(application(service)), service)


def application(service: Service) -> FastAPI:
    """The routes, which answer requests that have been let in."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="Air-Executor", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.service, app.state.load = service, Load()
    problems.install(app)
    routes = APIRouter(prefix=PREFIX)
    for subject in (welcome, submitting, reading, records, controlling, changes, completions):
        routes.include_router(subject.router)
    app.include_router(routes)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The description of the API; FastAPI does not know the bodies of requests, which it does not read."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_DESCRIPTION)
        known = schema.setdefault("components", {})
        known["schemas"] = {**_schemas_of_bodies(), **known.get("schemas", {}), "Problem": _PROBLEM}
        known["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _schemas_of_bodies() -> dict[str, Any]:
    """What requests must be, by names that no record has which an answer holds."""
    template = SCHEMA.format("{model}")
    _, found = models_json_schema([(model, "validation") for model in _BODIES], ref_template=template)
    return {f"{name}{INPUT}": schema for name, schema in found["$defs"].items()}


_PROBLEM = problems.Problem.model_json_schema()
_DESCRIPTION = """The jobs of a base path. A token is needed for all but `/v1/health`, and by the Unix socket none."""
