"""What the manager is to do, and the locks that clients hold."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from airflow_provider_air_executor.server.access import ADMIN, READ, SUBMIT, Asks, TokenDep
from airflow_provider_air_executor.server.bodies import Body
from airflow_provider_air_executor.server.leases import SECONDS
from airflow_provider_air_executor.server.messages import ControlChange, ControlNow, Lease
from airflow_provider_air_executor.server.problems import may_answer
from airflow_provider_air_executor.server.service import JobsDep, ServiceDep

router = APIRouter(tags=["manager"])

_CHANGE = Body(ControlChange)
What = Annotated[str, Path(pattern="^[A-Za-z0-9]{1,64}$", description="A word for what the lock is for.")]
Holder = Annotated[str, Query(min_length=1, max_length=200, description="A word that only the holder knows.")]


@router.get("/control", responses=may_answer(), dependencies=[READ])
def get_control(jobs: JobsDep) -> ControlNow:
    """What the manager is to do."""
    control = jobs.control()
    return ControlNow(paused=control.paused, slots=dict(control.slots))


@router.put(
    "/control",
    responses=may_answer(408, 413),
    openapi_extra=_CHANGE.described,
    dependencies=[Depends(Asks("control")), ADMIN],
)
def set_control(change: Annotated[ControlChange, Depends(_CHANGE)], jobs: JobsDep) -> ControlNow:
    """Let the manager start no more tasks, or start them again; set how many attempts runners may have at a time."""
    for runner, slots in change.slots.items():
        jobs.set_slots(slots, runner)
    if change.paused is not None:
        jobs.set_paused(change.paused)
    return get_control(jobs)


@router.post("/manager/keep-alive", status_code=204, responses=may_answer(), dependencies=[SUBMIT])
def keep_alive(jobs: JobsDep) -> None:
    """Make sure that a manager runs, if it is embedded."""
    jobs.ensure_manager()


@router.put("/locks/{what}", responses=may_answer(423), dependencies=[SUBMIT])
def take_lock(what: What, holder: Holder, token: TokenDep, service: ServiceDep) -> Lease:
    """Take a lock, or hold it for longer."""
    service.leases.take(what, f"{token.name} {holder}")
    return Lease(seconds=SECONDS)


@router.delete("/locks/{what}", status_code=204, responses=may_answer(), dependencies=[SUBMIT])
def give_lock_back(what: What, holder: Holder, token: TokenDep, service: ServiceDep) -> None:
    """Give a lock back; nothing happens if it is not held."""
    service.leases.give_back(what, f"{token.name} {holder}")
