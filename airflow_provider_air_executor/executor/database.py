"""The executor's queries of Airflow's database, and its updates."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from airflow.executors import workloads
from airflow.models import callback
from airflow.models.callback import ExecutorCallback
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from airflow.utils.state import CallbackState, TaskInstanceState
from sqlalchemy import select, update

from airflow_provider_air_executor.executor.outcome import ALIVE
from airflow_provider_air_executor.jobs.models import utc_now

_PENDING = (CallbackState.QUEUED, CallbackState.RUNNING)

_Item = TypeVar("_Item")


class Instance(NamedTuple):
    """How a task instance stands."""

    state: str | None
    external_executor_id: str | None


def instances(keys: Iterable[TaskInstanceKey]) -> dict[TaskInstanceKey, Instance]:
    """How the task instances of these keys stand; one that is not there, or is at another try, is left out.

    They are looked up by their keys: a task that is cleared while it runs gets another id.
    """
    columns = (  # those of a key come first, in its order
        TaskInstance.dag_id,
        TaskInstance.task_id,
        TaskInstance.run_id,
        TaskInstance.try_number,
        TaskInstance.map_index,
        TaskInstance.state,
        TaskInstance.external_executor_id,
    )
    found: dict[TaskInstanceKey, Instance] = {}
    for some in _chunks(list(keys)):
        condition = TaskInstance.filter_for_tis(some)
        if condition is not None:
            with create_session(scoped=False) as session:
                for row in session.execute(select(*columns).where(condition)):
                    found[TaskInstanceKey(*row[:5])] = Instance(row[5], row[6])
    return found


def workload_of(ti_id: uuid.UUID | None, generator: Any) -> Any:
    """The workload of a task that another scheduler has submitted, or was about to submit.

    :param generator: signs its token.
    :raises LookupError: if there is no such task any more.
    """
    with create_session(scoped=False) as session:
        ti = session.get(TaskInstance, ti_id) if ti_id is not None else None
        if ti is None:
            raise LookupError("its workload is gone with the scheduler that submitted it")
        return workloads.ExecuteTask.make(ti, generator=generator)


def renew_queued_time(ti_ids: list[uuid.UUID]) -> None:
    """These tasks wait for a slot; they are not stuck."""
    for some in _chunks(ti_ids):
        with create_session(scoped=False) as session:
            session.execute(
                update(TaskInstance)
                .where(TaskInstance.id.in_(some), TaskInstance.state == TaskInstanceState.QUEUED)
                .values(queued_dttm=utc_now())
                .execution_options(synchronize_session=False)
            )


def pending_callbacks() -> list[str]:
    """The ids of the callbacks that have been handed over, and have not ended."""
    with create_session(scoped=False) as session:
        ids = session.scalars(select(ExecutorCallback.id).where(ExecutorCallback.state.in_(_PENDING)))
        return [str(callback_id) for callback_id in ids]


def callback_key(callback_id: str) -> Any:
    """By what the executor knows a callback."""
    return callback.CallbackKey(callback_id)  # before Airflow 3.3 another name of str


def still_needed(names: list[str]) -> set[str]:
    """Which of these external executor ids belong to tasks that have not ended."""
    column = TaskInstance.external_executor_id
    needed: set[str] = set()
    for some in _chunks(names):
        with create_session(scoped=False) as session:
            alive = select(column).where(column.in_(some), TaskInstance.state.in_(ALIVE))
            needed.update(name for name in session.scalars(alive) if name is not None)
    return needed


def _chunks(items: list[_Item], size: int = 500) -> Iterator[list[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
