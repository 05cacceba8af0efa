"""The bodies of requests, as what they must be.

:mod:`.limits` has read them, and bounds how many bytes of them there are, and :mod:`.load` what comes of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.validation import describe_validation_error
from airflow_provider_air_executor.server.load import load_of

_SHORT = 65_536  # bytes, which take less time than a thread

INPUT = "-Input"  # at the end of the names of schemas of bodies
SCHEMA = "#/components/schemas/{}" + INPUT

M = TypeVar("M", bound=BaseModel)


class Body(Generic[M]):
    """A dependency of a route: the body of the request, which is JSON.

    :param model: what it must be.
    """

    def __init__(self, model: type[M]) -> None:
        self.model = model

    async def __call__(self, request: Request) -> AsyncGenerator[M, None]:
        """Give the body; a long one waits for others to be carried out."""
        body = await request.body()
        if len(body) <= _SHORT:
            yield self._parsed(body)
            return
        async with load_of(request).body(len(body)):
            yield await run_in_threadpool(self._parsed, body)

    def _parsed(self, body: bytes) -> M:
        try:
            return self.model.model_validate_json(body)
        except ValidationError as error:
            raise InvalidJobError(describe_validation_error(error, "")) from None

    @property
    def described(self) -> dict[str, Any]:
        """What the description of the API says of it, for ``openapi_extra``; :mod:`.app` adds the schema itself."""
        reference = {"$ref": SCHEMA.format(self.model.__name__)}
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}
