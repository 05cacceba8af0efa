"""The records of jobs, as clients need them that look at jobs in a program of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic_core import to_json

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.history import PastJob, Run
from airflow_provider_air_executor.jobs.interface import LinePosition
from airflow_provider_air_executor.server.access import READ, SUBMIT, TokenDep
from airflow_provider_air_executor.server.bodies import Body
from airflow_provider_air_executor.server.load import WITH_LIST
from airflow_provider_air_executor.server.masking import shown_attempt, shown_job, shown_task, without_values
from airflow_provider_air_executor.server.messages import (
    HeldUp,
    LastLines,
    Location,
    NewLinesOfTasks,
    Offsets,
    OneJob,
    Position,
    Positions,
    Remark,
    Results,
    TaskLines,
)
from airflow_provider_air_executor.server.messages import Query as NamesQuery
from airflow_provider_air_executor.server.problems import may_answer, problem_of
from airflow_provider_air_executor.server.service import JobsDep, ServiceDep
from airflow_provider_air_executor.server.streams import NDJSON, Lines, Pieces
from airflow_provider_air_executor.server.tokens import Scope

router = APIRouter(tags=["records"], dependencies=[READ])

_QUERY, _POSITIONS, _OFFSETS = Body(NamesQuery), Body(Positions), Body(Offsets)
_LONGEST = 2**62  # bytes of a log
MOST_LOG_BYTES = 1 << 20  # of a log, in one answer
_NUMBER = {"schema": {"type": "integer"}}
_LOG: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A piece of the log.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "X-Offset": {"description": "Where it begins in the log.", **_NUMBER},
            "X-Next-Offset": {"description": "Where it ends.", **_NUMBER},
            "X-Log-Size": {"description": "The length of the log.", **_NUMBER},
        },
    }
}
_READS = may_answer(404)
_STREAMS = {**_READS, **NDJSON}


@router.get("/records", response_class=Lines, responses={**may_answer(), **NDJSON})
def get_records(
    service: ServiceDep,
    after: Annotated[str | None, Query(description="The cursor of the answer before.")] = None,
) -> Lines:
    """All jobs, or those that have changed since an answer before. The last line has the next cursor."""
    return Lines(service.listing.lines(after), service.jobs.store.base_path)


@router.post(
    "/records/query", response_class=Lines, responses={**may_answer(408, 413), **NDJSON}, openapi_extra=_QUERY.described
)
def query(query: Annotated[NamesQuery, Depends(_QUERY)], jobs: JobsDep) -> Lines:
    """The jobs of some names; null where there is none."""
    return Lines(_found(jobs, query.names), jobs.store.base_path)


def _found(jobs: FileJobs, names: list[str]) -> Iterator[bytes]:
    for name in names:
        head, found, error = json.dumps(name), "null", ""
        try:
            found = _shown(jobs, name)
        except JobNotFoundError:
            pass
        except (AirExecutorError, OSError) as problem:  # it says nothing of the others
            error = f',"error":{json.dumps(problem_of(problem).content)}'
        yield f'{{"name":{head},"job":{found}{error}}}'.encode(errors="replace")


def _line(record: AttemptRecord | PastJob | Run) -> bytes:
    return to_json(record._asdict())


def _shown(jobs: FileJobs, name: str) -> str:
    return shown_job(jobs.get_job(name), jobs.mask(name)).model_dump_json()


@router.get("/records/{name}", responses=_READS)
def get_record(name: str, jobs: JobsDep) -> OneJob:
    """A job."""
    return OneJob(job=shown_job(jobs.get_job(name), jobs.mask(name)))


@router.get("/records/{name}/tasks", response_class=Lines, responses=_STREAMS, dependencies=[WITH_LIST])
def get_tasks(
    name: str,
    token: TokenDep,
    jobs: JobsDep,
    task: Annotated[list[str] | None, Query(description="Only these tasks.")] = None,
) -> Lines:
    """The tasks of a job, in the order of the list; for a token that only reads, without the values of variables."""
    tasks, mask = jobs.get_tasks(name, task or ()), jobs.mask(name)
    shown = (shown_task(each, mask) for each in tasks)
    if not token.scope.includes(Scope.SUBMIT):
        shown = (without_values(each) for each in shown)
    return Lines((each.model_dump_json().encode() for each in shown), jobs.store.base_path)


@router.get("/records/{name}/attempts", response_class=Lines, responses=_STREAMS, dependencies=[WITH_LIST])
def get_attempts(
    name: str,
    jobs: JobsDep,
    task: Annotated[list[str] | None, Query(description="Only those of these tasks.")] = None,
) -> Lines:
    """The attempts of a job's tasks, task by task, the latest attempt of a task last."""
    tasks, mask = jobs.get_tasks(name, task or ()), jobs.mask(name)
    found = jobs.get_attempts(name, tasks)
    return Lines((_line(shown_attempt(attempt, mask)) for attempt in found), jobs.store.base_path)


@router.get(
    "/records/{name}/results",
    response_class=Response,
    responses={**_READS, 200: {"model": Results}},
    dependencies=[WITH_LIST],
)
def get_results(
    name: str,
    token: TokenDep,
    jobs: JobsDep,
    masked: Annotated[bool, Query(description="Whether they are for people, and so without secrets.")] = False,
    reserved: Annotated[
        list[str] | None, Query(description="Keys, with commas between: no object may have all of them.")
    ] = None,
) -> Pieces:
    """What the completed tasks of a job have handed over; without secrets for a token that only reads."""
    is_masked = masked or not token.scope.includes(Scope.SUBMIT)
    keys = [frozenset(text.split(",")) for text in reserved or ()]
    return Pieces(_results(jobs.results(name, keys, masked=is_masked)), jobs.store.base_path)


def _results(results: Mapping[str, Any]) -> Iterator[bytes]:
    yield b'{"results":{'
    for number, (task_id, value) in enumerate(results.items()):
        yield f"{',' if number else ''}{json.dumps(task_id)}:{json.dumps(value)}".encode()
    yield b"}}"


@router.post("/records/{name}/new-lines", responses=may_answer(404, 408, 413), openapi_extra=_POSITIONS.described)
def get_new_lines(name: str, positions: Annotated[Positions, Depends(_POSITIONS)], jobs: JobsDep) -> NewLinesOfTasks:
    """What tasks have printed since some positions, of those of which there is something new."""
    given = {task_id: LinePosition(**dict(position)) for task_id, position in positions.positions.items()}
    found = jobs.new_lines(name, given, is_over=positions.is_over)
    lines = {
        task_id: TaskLines(
            lines=list(new.lines), position=Position(**new.position._asdict()), is_truncated=new.is_truncated
        )
        for task_id, new in found.items()
    }
    return NewLinesOfTasks(lines=lines)


@router.get("/records/{name}/positions/{reader}", responses=_READS)
def get_positions(name: str, reader: str, jobs: JobsDep) -> Offsets:
    """The position of a reader in the logs of a job."""
    return Offsets(offsets=jobs.load_positions(name, reader))


@router.put(
    "/records/{name}/positions/{reader}",
    status_code=204,
    responses=may_answer(404, 408, 413),
    openapi_extra=_OFFSETS.described,
    dependencies=[SUBMIT],
)
def set_positions(name: str, reader: str, offsets: Annotated[Offsets, Depends(_OFFSETS)], jobs: JobsDep) -> None:
    """Keep the position of a reader in the logs of a job; nothing happens if the job is gone."""
    jobs.save_positions(name, reader, offsets.offsets)


@router.get("/records/{name}/log", response_class=Response, responses={**_READS, **_LOG})
def get_log(
    name: str,
    jobs: JobsDep,
    task: Annotated[str, Query(description="The id of the task.")],
    offset: Annotated[int, Query(ge=-_LONGEST, le=_LONGEST, description="In bytes; negative: before the end.")] = 0,
    limit: Annotated[int, Query(ge=0, description="Of bytes; at most 1 MiB come.")] = MOST_LOG_BYTES,
    is_over: Annotated[bool, Query(description="Whether nothing more will be printed.")] = True,
) -> Response:
    """A piece of the log of a task, without secrets; of a task without a log, nothing."""
    jobs.get_job(name)
    log = jobs.log(name, task)
    size = log.size()
    start = max(0, size + offset) if offset < 0 else offset
    chunk = log.read(start, min(limit, MOST_LOG_BYTES), is_over=is_over)
    headers = {"X-Offset": str(start), "X-Next-Offset": str(chunk.next_offset), "X-Log-Size": str(size)}
    return Response(chunk.data, headers=headers, media_type="application/octet-stream")


@router.get("/records/{name}/log-tail", responses=_READS)
def get_last_lines(
    name: str,
    jobs: JobsDep,
    task: Annotated[str, Query(description="The id of the task.")],
    lines: Annotated[int, Query(ge=1, le=10_000)] = 10,
) -> LastLines:
    """The last lines of the log of a task, of at most 64 KiB."""
    jobs.get_job(name)
    return LastLines(lines=jobs.log(name, task).tail(lines))


@router.get("/records/{name}/log-location", responses=_READS)
def get_log_location(name: str, jobs: JobsDep) -> Location:
    """Where the logs of a job are on the server's machine."""
    return Location(location=jobs.log_location(name))


@router.get("/past-jobs", response_class=Lines, responses={**may_answer(), **NDJSON})
def get_past_jobs(jobs: JobsDep) -> Lines:
    """The jobs that were removed, those first that were removed last."""
    return Lines(map(_line, jobs.past_jobs()), jobs.store.base_path)


@router.get("/durations", response_class=Lines, responses={**may_answer(), **NDJSON})
def get_durations(jobs: JobsDep, series: Annotated[str, Query()]) -> Lines:
    """The runs of a series that have ended; the latest is last."""
    return Lines(map(_line, jobs.durations(series)), jobs.store.base_path)


@router.post("/held-up", responses=may_answer(408, 413), openapi_extra=_QUERY.described)
def get_held_up(query: Annotated[NamesQuery, Depends(_QUERY)], jobs: JobsDep) -> HeldUp:
    """Why some jobs do not progress, by their names; those that do are left out."""
    wanted = set(query.names)
    return HeldUp(held_up=jobs.held_up(job for job in jobs.index().jobs() if job.name in wanted))


@router.get("/trouble/{name}", responses=_READS)
def get_trouble(name: str, jobs: JobsDep) -> Remark:
    """What is said beside the progress of a job that does not progress."""
    return Remark(remark=jobs.trouble(name))
