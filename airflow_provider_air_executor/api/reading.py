"""The reading routes as one router, to be mounted by the pages of Airflow and by a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from airflow_provider_air_executor.api.routes import job, jobs, logs, manager, results
from airflow_provider_air_executor.api.view import View

Access = Callable[..., View] | Callable[..., Awaitable[View]]


def reading_routes(access: Access, refusals: Mapping[int | str, Mapping[str, Any]]) -> APIRouter:
    """The routes ``/jobs``, ``/jobs/{job_name}``, ``/jobs/{job_name}/tasks`` ..., ``/dags`` and ``/manager``.

    They raise ``HTTPException``, the errors of this package and :class:`OSError`; the application turns these into
    answers.

    :param access: a dependency: what the one who asks may see. It is asked before anything else, and may refuse.
    :param refusals: the errors that each route may answer with, for the description of the API.
    """

    async def keep(request: Request, response: Response, view: View = Depends(access)) -> None:  # noqa: B008 - a name in an annotation would have to be one of the module
        request.state.air_executor_view = view
        response.headers.update(view.headers)

    router = APIRouter(dependencies=[Depends(keep)], responses={code: dict(told) for code, told in refusals.items()})
    for subject in (jobs, job, logs, results, manager):
        router.include_router(subject.router)
    return router
