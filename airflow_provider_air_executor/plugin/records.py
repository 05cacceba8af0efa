"""What is asked of jobs by the pages, and answered; :mod:`..api.records` has the jobs themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

MAX_BULK = 500  # jobs of one request


class Asked(BaseModel):
    """Whether something was asked of the manager; not if the job had ended already."""

    requested: bool


class Bulk(BaseModel):
    """The same request about several jobs."""

    action: Literal["cancel", "retry", "remove"]
    jobs: Annotated[list[str], Field(min_length=1, max_length=MAX_BULK)]


class BulkAnswer(BaseModel):
    """What became of a request about one of several jobs.

    ``status`` is the code that the request about this job alone is answered with, and ``detail`` the reason for which
    it was refused.
    """

    job: str
    requested: bool
    status: int
    detail: str | None = None


class Refusal(BaseModel):
    """Why a request was not carried out.

    ``away_since`` is there if the manager is on another machine that cannot be reached now: when it was reached last.
    """

    detail: str
    away_since: datetime | None = None
