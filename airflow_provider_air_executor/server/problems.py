"""Errors as problem details (RFC 9457): a client makes the same exception of them again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from airflow_provider_air_executor import exceptions

log = logging.getLogger("air_executor.server")

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:air-executor:"
RETRY_SECONDS = 1  # after which something that is not available now is asked for again

Facts = Callable[[Any], dict[str, Any]]


class Problem(BaseModel):
    """What an answer says that is an error."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


class ProblemError(Exception):
    """A request cannot be answered.

    :param status: of the answer.
    :param code: the word at the end of the type of the problem.
    :param detail: a sentence for the one who asked.
    :param headers: of the answer.
    :param facts: more members of the answer.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **facts: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.facts = status, code, detail, facts
        self.headers = dict(headers or {})

    @property
    def content(self) -> dict[str, Any]:
        """The problem, for ``json.dumps``."""
        return {
            **self.facts,
            "type": PREFIX + self.code,
            "title": self.code.replace("-", " "),
            "status": self.status,
            "detail": self.detail,
        }

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.content, self.status, self.headers, media_type=MEDIA_TYPE)


def _place(error: Any) -> dict[str, Any]:
    return {"name": error.job_name, "base_path": str(error.base_path)}


# The most special ones first: the first that fits counts.
_KINDS: tuple[tuple[type[exceptions.AirExecutorError], int, str, Facts], ...] = (
    (exceptions.JobRemovedError, 410, "job-removed", lambda error: {**_place(error), "ended": error.ended}),
    (exceptions.JobNotFoundError, 404, "job-not-found", _place),
    (exceptions.JobExistsError, 409, "job-exists", lambda error: {**_place(error), "owner": error.owner}),
    (exceptions.JobStateError, 409, "job-state", lambda _: {}),
    (
        exceptions.NotRemovedError,
        409,
        "not-removed",
        lambda error: {"name": error.job_name, "path": str(error.path), "why": error.why},
    ),
    (
        exceptions.OutputError,
        422,
        "output",
        lambda error: {"name": error.job_name, "task_id": error.task_id, "why": error.why},
    ),
    (exceptions.InvalidJobError, 422, "invalid-job", lambda _: {}),
    (exceptions.SettingsError, 422, "settings", lambda _: {}),
    (exceptions.CorruptFileError, 424, "corrupt-file", lambda error: {"path": str(error.path), "why": error.why}),
    (exceptions.NoLocksError, 503, "no-locks", lambda error: {"path": str(error.path), "why": error.why}),
    (exceptions.ManagerError, 503, "manager", lambda _: {}),
    (
        exceptions.BasePathError,
        503,
        "base-path",
        lambda error: {"base_path": str(error.base_path), "whose": error.whose, "why": error.why},
    ),
    (exceptions.AirExecutorError, 424, "unreadable", lambda _: {}),
)


def problem_of(error: Exception) -> ProblemError:
    """The problem that an error of the job filesystem is."""
    if isinstance(error, exceptions.AirExecutorError):
        _, status, code, facts = next(kind for kind in _KINDS if isinstance(error, kind[0]))
        headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
        return ProblemError(status, code, str(error), headers=headers, **facts(error))
    detail, number = str(error), getattr(error, "errno", None)
    return ProblemError(503, "unavailable", detail, headers={"Retry-After": str(RETRY_SECONDS)}, errno=number)


def install(app: FastAPI) -> None:
    """Let all errors of an application be problem details."""
    app.add_exception_handler(ProblemError, _show_problem)
    app.add_exception_handler(exceptions.AirExecutorError, _show_error)
    app.add_exception_handler(OSError, _show_error)
    app.add_exception_handler(RequestValidationError, _show_invalid)
    app.add_exception_handler(HTTPException, _show_refusal)
    app.add_exception_handler(Exception, _show_fault)


async def _show_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - as it was registered
    return error.response()


async def _show_error(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status == 503:
        log.warning("%s %r: %s", request.method, request.url.path, error)
    return problem.response()


async def _show_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as it was registered
    said = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:20])
    return ProblemError(422, "invalid-request", said).response()


_WORDS = {404: "not-found", 405: "method"}


async def _show_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as it was registered
    detail = f"{request.url.path}: {error.detail}"
    code = _WORDS.get(error.status_code, "refused")
    return ProblemError(error.status_code, code, detail, headers=error.headers).response()


async def _show_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: what it was is in the log, since it may name what must not be shown."""
    log.error("%s %r: %r", request.method, request.url.path, error)
    return ProblemError(500, "fault", "the server has a fault; its log has more").response()


_SAID = {
    400: "The protocol is not one that both sides speak, or the request cannot be read.",
    401: "No token, or one that is not valid.",
    403: "The token does not allow this.",
    404: "There is no such thing.",
    405: "The address is not for this method.",
    408: "The request took too long.",
    409: "The state of the job forbids it, or its name is taken.",
    410: "The job was removed.",
    413: "The request is too long.",
    422: "The request is not valid.",
    423: "Another one holds the lock.",
    424: "A file of the job cannot be read.",
    429: "There were too many requests.",
    503: "It cannot be done now.",
}
# What each route may answer: whoever asks, and however the file system stands.
_ALWAYS = (400, 401, 403, 422, 424, 429, 503)


def may_answer(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the description of the API.

    :param codes: besides those that each route has.
    """
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": _SAID[code], "content": content} for code in sorted({*_ALWAYS, *codes})}
