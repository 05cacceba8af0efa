"""What the routes share: the job that a request is about, and the errors that they may answer with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, status

from airflow_provider_air_executor.api.view import Right
from airflow_provider_air_executor.plugin.access import FoundJob, job_for, same_site
from airflow_provider_air_executor.plugin.records import Refusal

SeenJob = Annotated[FoundJob, Depends(job_for(Right.SEE))]
EditedJob = Annotated[FoundJob, Depends(job_for(Right.CHANGE))]


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, for the description of the API."""
    words = {
        status.HTTP_401_UNAUTHORIZED: "No login.",
        status.HTTP_403_FORBIDDEN: "Not allowed.",
        status.HTTP_404_NOT_FOUND: "There is no such thing, or its files cannot be read.",
        status.HTTP_409_CONFLICT: "The job's state forbids it.",
        status.HTTP_503_SERVICE_UNAVAILABLE: "No manager can be reached, or started from here.",
    }
    return {code: {"model": Refusal, "description": words[code]} for code in codes}


ABOUT_A_JOB = refusals(status.HTTP_403_FORBIDDEN, status.HTTP_404_NOT_FOUND, status.HTTP_503_SERVICE_UNAVAILABLE)
ASKING: dict[str, Any] = {"dependencies": [Depends(same_site)], "status_code": status.HTTP_202_ACCEPTED}
