"""The ends of jobs for subscribers: each one once, until it is acknowledged."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from airflow_provider_air_executor.jobs.interface import Completions, JobFilter
from airflow_provider_air_executor.jobs.models import Count, Job, Timestamp
from airflow_provider_air_executor.server.access import SUBMIT, TokenDep
from airflow_provider_air_executor.server.bodies import Body
from airflow_provider_air_executor.server.events import DESCRIBED, HEARTBEAT, Events, Pulse, StopStreamError, event
from airflow_provider_air_executor.server.masking import shown_job
from airflow_provider_air_executor.server.messages import Message
from airflow_provider_air_executor.server.problems import may_answer
from airflow_provider_air_executor.server.service import Service, ServiceDep
from airflow_provider_air_executor.server.tokens import Token

router = APIRouter(tags=["completions"])

_PASS_SECONDS = 5.0  # between two looks at all jobs, where the file system does not notify


class Identity(Message):
    """What tells the end of a job from all other ones."""

    name: str
    id: str
    attempt: Count = 0
    updated_at: Timestamp | None = None


class Settled(Message):
    """An end that has been dealt with, or could not be."""

    job: Identity


_SETTLED = Body(Settled)
BODIES: tuple[type[BaseModel], ...] = (Settled,)

Subscriber = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$", description="The name of the subscriber.")]
Holder = Annotated[str, Query(min_length=1, max_length=200, description="A word that only this client knows.")]


@router.get(
    "/completions/{subscriber}", response_class=Events, responses={**may_answer(), **DESCRIBED}, dependencies=[SUBMIT]
)
async def follow_completions(
    subscriber: Subscriber,
    holder: Holder,
    token: TokenDep,
    service: ServiceDep,
    name: Annotated[str, Query(description="Names of jobs, with `*`, `?` and `[...]`.")] = "*",
    label: Annotated[list[str] | None, Query(description="`NAME=VALUE`: a label that the job must have.")] = None,
    state: Annotated[list[str] | None, Query(description="How it must have ended.")] = None,
    outlet: Annotated[str | None, Query(description="A URI that the job must have declared.")] = None,
    formerly: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,64}$", description="The name it had before.")] = "",
) -> Events:
    """Server-sent events: a `job` when it has ended, once, from the time on when the subscriber came first.

    While another holder has the subscriber's lock, only comments come. A connection that breaks may be made again by
    its holder within ten seconds. Ends that were not acknowledged are sent again then.
    """
    service.subscribers.check_room(subscriber)
    pairs = tuple((text.partition("=")[0], text.partition("=")[2]) for text in label or ())
    wanted = JobFilter(name, pairs, tuple(state or JobFilter().states), outlet)
    make: Callable[[], Completions] = partial(
        service.jobs.completions, subscriber, wanted, interval=_PASS_SECONDS, formerly=formerly
    )
    return Events(_events(service, token, subscriber, _whole(token, holder), make))


@router.post(
    "/completions/{subscriber}/ack",
    status_code=204,
    responses=may_answer(408, 413),
    openapi_extra=_SETTLED.described,
    dependencies=[SUBMIT],
)
async def ack(subscriber: Subscriber, settled: Annotated[Settled, Depends(_SETTLED)], service: ServiceDep) -> None:
    """An end has been dealt with, and is not sent again. It may come from a holder that has lost the lock since."""
    job, session = _job(settled), service.subscribers.get(subscriber)
    completions: Completions
    if session is not None:
        session.settle(job)
        completions = session.completions
    else:
        completions = service.jobs.completions(subscriber, JobFilter(), interval=_PASS_SECONDS)
    await run_in_threadpool(completions.ack, job)


@router.post(
    "/completions/{subscriber}/nack",
    status_code=204,
    responses=may_answer(408, 413),
    openapi_extra=_SETTLED.described,
    dependencies=[SUBMIT],
)
async def nack(
    subscriber: Subscriber,
    holder: Holder,
    settled: Annotated[Settled, Depends(_SETTLED)],
    token: TokenDep,
    service: ServiceDep,
) -> None:
    """An end could not be dealt with, and is sent once more."""
    job, session = _job(settled), service.subscribers.get(subscriber)
    if session is not None and session.holder == _whole(token, holder):  # otherwise it is sent again anyway
        session.settle(job)
        await run_in_threadpool(session.completions.nack, job)


@router.delete("/completions/{subscriber}", status_code=204, responses=may_answer(), dependencies=[SUBMIT])
async def leave(subscriber: Subscriber, holder: Holder, token: TokenDep, service: ServiceDep) -> None:
    """Let another holder have the subscriber's lock."""
    service.subscribers.leave(subscriber, _whole(token, holder))


def _whole(token: Token, holder: str) -> str:
    return f"{token.name} {holder}"


def _job(settled: Settled) -> Job:
    return Job(**settled.job.model_dump())


async def _events(
    service: Service, token: Token, subscriber: str, holder: str, make: Callable[[], Completions]
) -> AsyncGenerator[bytes, None]:
    pulse = Pulse(service, token)
    yield HEARTBEAT  # so that the client knows that it is connected
    ends = service.subscribers.events(subscriber, holder, make, pulse.seconds)
    with contextlib.suppress(StopStreamError):
        async with contextlib.aclosing(ends):
            async for job in ends:
                if job is not None:
                    shown = await run_in_threadpool(_shown, service, job)
                    yield event("job", shown)
                if beat := await pulse.beat():
                    yield beat


def _shown(service: Service, job: Job) -> bytes:
    return shown_job(job, service.jobs.mask(job.name)).model_dump_json().encode()
