"""The routes below ``/air-executor``: pages, their JSON API, and the files that the pages load.

Each route asks for a login, and each that is about a job for the rights that :mod:`.access` describes.
"""

from __future__ import annotations

import html
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, get_user
from airflow.models.log import Log
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, status
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_air_executor import links
from airflow_provider_air_executor.exceptions import AirExecutorError, JobStateError, ManagerError
from airflow_provider_air_executor.jobs import inbox, masking
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.index import TaskCounts
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, JobState, Task, TaskStatus, nearest_tasks
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.summary import why_blocked
from airflow_provider_air_executor.plugin import live, pages
from airflow_provider_air_executor.plugin.access import (
    FoundJob,
    RightsDep,
    connections_for,
    hook_of,
    index_of,
    job_for,
    same_site,
)
from airflow_provider_air_executor.plugin.pages import HEADERS
from airflow_provider_air_executor.plugin.records import (
    Asked,
    JobDetails,
    JobList,
    JobSummary,
    Refusal,
    TaskDetails,
    TaskList,
)

log = logging.getLogger(__name__)

MAX_LOG_BYTES = 1_048_576  # of one answer
MAX_JOBS = 500  # of one answer
MAX_TASKS = 2_000  # of one answer
_FARTHEST = 2**40  # offset; file systems refuse one that no file could have

SeenJob = Annotated[FoundJob, Depends(job_for(DagAccessEntity.TASK_INSTANCE))]
SeenLog = Annotated[FoundJob, Depends(job_for(DagAccessEntity.TASK_LOGS))]
EditedJob = Annotated[FoundJob, Depends(job_for(DagAccessEntity.TASK_INSTANCE, "PUT"))]
Offset = Annotated[
    int, Query(ge=-_FARTHEST, le=_FARTHEST, description="Where to start, in bytes; negative: so many before the end.")
]


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, for the description of the API."""
    words = {
        status.HTTP_401_UNAUTHORIZED: "No login.",
        status.HTTP_403_FORBIDDEN: "Not allowed.",
        status.HTTP_404_NOT_FOUND: "There is no such thing, or its files cannot be read.",
        status.HTTP_409_CONFLICT: "The job's state forbids it.",
        status.HTTP_503_SERVICE_UNAVAILABLE: "No manager can be asked or started from here.",
    }
    return {code: {"model": Refusal, "description": words[code]} for code in codes}


_ABOUT_A_JOB = _refusals(status.HTTP_403_FORBIDDEN, status.HTTP_404_NOT_FOUND)
_CHANGING = {**_ABOUT_A_JOB, **_refusals(status.HTTP_503_SERVICE_UNAVAILABLE)}
_ASKING: dict[str, Any] = {"dependencies": [Depends(same_site)], "status_code": status.HTTP_202_ACCEPTED}
_LOG = {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
_EVENTS = {"description": "Events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}

# No pages of documentation, which would be public; /api/openapi.json is ours.
app = FastAPI(
    title="Air-Executor",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[Depends(get_user)],
    responses=_refusals(status.HTTP_401_UNAUTHORIZED),
)


@app.exception_handler(StarletteHTTPException)
async def _show_error(request: Request, error: StarletteHTTPException) -> Response:
    """Errors are JSON for programs, and a sentence for people."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    root = html.escape(links.root_path())
    text = html.escape(str(error.detail))
    if error.status_code == status.HTTP_401_UNAUTHORIZED:
        here = quote(request.url.path + (f"?{request.url.query}" if request.url.query else ""), safe="")
        text = f'<a href="{root}/auth/login?next={here}" target="_top">Log in to Airflow</a> to see this page.'
    page = pages.page("Air-Executor", f'<main class="message"><p>{text}</p><p><a href="{root}/">Airflow</a></p></main>')
    return HTMLResponse(page, error.status_code, {**HEADERS, **(error.headers or {})})


@app.exception_handler(AirExecutorError)
@app.exception_handler(OSError)
async def _show_unreadable(request: Request, error: Exception) -> Response:
    """The job's files are gone, are not valid, or cannot be reached now."""
    if isinstance(error, JobStateError):
        return JSONResponse({"detail": str(error)}, status.HTTP_409_CONFLICT, HEADERS)
    log.warning("%s: %s", request.url.path, error)
    if isinstance(error, ManagerError):
        detail = "it is asked for, but no manager is running, and none can be started here"
        return JSONResponse({"detail": detail}, status.HTTP_503_SERVICE_UNAVAILABLE, HEADERS)
    if request.method != "GET":
        detail = "the manager cannot be asked: the job filesystem cannot be written to from here"
        return JSONResponse({"detail": detail}, status.HTTP_503_SERVICE_UNAVAILABLE, HEADERS)
    return JSONResponse({"detail": "the files of the job cannot be read"}, status.HTTP_404_NOT_FOUND, HEADERS)


# -- pages -------------------------------------------------------------------------------------------------


@app.get("/jobs", response_class=HTMLResponse)
def show_jobs() -> Response:
    """The page of all jobs."""
    return pages.show("jobs", "Jobs")


@app.get("/jobs/{job_name}", response_class=HTMLResponse, responses=_ABOUT_A_JOB)
def show_job(found: SeenJob) -> Response:
    """The page of a job."""
    return pages.show("job", found.job.name, {"job": found.job.name})


@app.get("/owned", response_class=HTMLResponse)
def show_owned() -> Response:
    """The jobs of one DAG run or task instance, which the query names: the tab in Airflow's pages of those."""
    return pages.show("owned", "Jobs")


@app.get("/static/{path:path}", response_class=Response, responses=_refusals(status.HTTP_404_NOT_FOUND))
def get_static(path: str) -> Response:
    """A file that the pages load."""
    content = pages.static_files().get(path)
    if content is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such file")
    kind = pages.STATIC_TYPES[path[path.rindex(".") :]]
    return Response(content, media_type=kind, headers={**HEADERS, "Cache-Control": "private, no-cache"})


# -- the JSON API ------------------------------------------------------------------------------------------


@app.get("/api/openapi.json")
def get_openapi() -> dict[str, Any]:
    """This API, described in OpenAPI's way."""
    return app.openapi()


@app.get("/api/connections")
def list_connections(user: GetUserDep) -> list[str]:
    """The ids of the connections to job filesystems: the default one, and those where the user sees a job."""
    return connections_for(user)


@app.get("/api/jobs", responses=_ABOUT_A_JOB)
def list_jobs(
    response: Response,
    rights: RightsDep,
    name: Annotated[str, Query(description="Part of the job's name, in whatever case.")] = "",
    state: Annotated[Sequence[JobState], Query(description="One of these states.")] = (),
    label: Annotated[Sequence[str], Query(description="All of these labels: `key`, or `key=value`.")] = (),
    dag_id: Annotated[str | None, Query(description="Submitted by this DAG.")] = None,
    run_id: Annotated[str | None, Query(description="Submitted by this DAG run.")] = None,
    task_id: Annotated[str | None, Query(description="Submitted by this Airflow task.")] = None,
    map_index: Annotated[int | None, Query(description="Submitted by this task instance of a mapped task.")] = None,
    limit: Annotated[int, Query(ge=0, le=MAX_JOBS)] = 50,
    offset: Annotated[int, Query(ge=0, description="How many jobs to pass over.")] = 0,
) -> JobList:
    """The jobs that the user may see, the newest first. Asking for those of a DAG needs the right to see it."""
    _never_cached(response)
    if dag_id is not None and not rights.permit_dag(dag_id, DagAccessEntity.TASK_INSTANCE):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "Forbidden")
    hook = hook_of(rights.conn_id)
    if hook is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "this is no connection to a job filesystem")
    owner = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    asked = {key: value for key, value in owner.items() if value is not None}
    index = index_of(hook.store)
    # Filter by filter, since there may be very many jobs and most requests have none.
    found: Sequence[Job] = index.jobs()
    if name:
        found = [job for job in found if name.lower() in job.name.lower()]
    if asked:
        found = [job for job in found if _is_owned(job, asked)]
    if label:
        wanted = [text.partition("=") for text in label]
        found = [job for job in found if _has_labels(job, wanted) and _shows_labels(hook.store, job, wanted)]
    found = [job for job in found if rights.permit(job, DagAccessEntity.TASK_INSTANCE)]
    state_counts = Counter(job.state for job in found)
    shown = [job for job in found if job.state in state] if state else found
    rows = [_row(hook.store, job, index.counts(job.name)) for job in shown[offset : offset + limit]]
    return JobList(jobs=rows, total=len(shown), state_counts={one: state_counts[one] for one in JobState})


@app.get("/api/jobs/{job_name}", responses=_ABOUT_A_JOB)
def get_job(response: Response, found: SeenJob) -> JobDetails:
    """A job."""
    _never_cached(response)
    job = found.job
    return JobDetails.shown(
        job,
        index_of(found.store).counts(job.name),
        masking.load(found.store.paths(job.name)),
        held_up=why_blocked(found.store, job, index_of(found.store).jobs()),
        may_edit=found.permits(DagAccessEntity.TASK_INSTANCE, "PUT"),
        may_read_logs=found.permits(DagAccessEntity.TASK_LOGS),
    )


@app.get("/api/jobs/{job_name}/tasks", responses=_ABOUT_A_JOB)
def list_tasks(
    response: Response,
    found: SeenJob,
    task_status: Annotated[Sequence[TaskStatus], Query(alias="status", description="With one of these statuses.")] = (),
    text: Annotated[str, Query(description="Part of the task's id, in whatever case.")] = "",
    task_id: Annotated[Sequence[str], Query(description="One of these ids.")] = (),
    near: Annotated[str, Query(description="Not the first ones, but those nearest to this task in the graph.")] = "",
    limit: Annotated[int, Query(ge=0, le=MAX_TASKS)] = 500,
    offset: Annotated[int, Query(ge=0, description="How many tasks to pass over.")] = 0,
) -> TaskList:
    """The tasks of a job, in the order of its list."""
    _never_cached(response)
    store, name = found.store, found.job.name
    listed = store.get_tasks(name)
    wanted: list[Task] = [
        task
        for task in (nearest_tasks(listed, near, limit) if near else listed)
        if (not task_status or task.status in task_status)
        and text.lower() in task.id.lower()
        and (not task_id or task.id in task_id)
    ]
    page = wanted[offset : offset + limit]
    attempts: dict[str, list[AttemptRecord]] = {task.id: [] for task in page}
    for record in store.get_attempts(name, page):
        attempts[record.task_id].append(record)
    mask = masking.load(store.paths(name))
    return TaskList(tasks=[TaskDetails.of(task, attempts[task.id], mask) for task in page], total=len(wanted))


@app.get("/api/jobs/{job_name}/tasks/{task_id}/log", response_class=Response, responses={200: _LOG, **_ABOUT_A_JOB})
def get_log(
    found: SeenLog,
    task_id: str,
    offset: Offset = 0,
    limit: Annotated[int | None, Query(ge=0, description="At most so many bytes; default: all there is.")] = None,
) -> Response:
    """The log of a task, byte for byte, but for secrets. With a limit, `X-Next-Offset` is where the next one begins."""
    mask, log = _mask_for_log(found, task_id), TaskLog(found.store.paths(found.job.name), task_id)
    is_over = found.job.state.is_terminal
    headers = {**HEADERS, "Content-Disposition": "inline"}
    if limit is None:
        pieces = _pieces(log, mask, offset, is_over=is_over)
        first = next(pieces, b"")  # if it cannot be read, that is said before the answer begins
        return StreamingResponse(chain([first], pieces), media_type="text/plain", headers=headers)
    chunk = mask.read_log(log, offset, min(limit, MAX_LOG_BYTES), is_over=is_over)
    headers["X-Next-Offset"] = str(chunk.next_offset)
    return Response(chunk.data, media_type="text/plain", headers=headers)


@app.get("/api/jobs/{job_name}/events", response_class=Response, responses={200: _EVENTS, **_ABOUT_A_JOB})
def follow_job(found: SeenJob) -> StreamingResponse:
    """Server-sent events of a job: `changed` when its files have changed, `end` when it has ended."""
    return _stream(found, None)


@app.get(
    "/api/jobs/{job_name}/tasks/{task_id}/events", response_class=Response, responses={200: _EVENTS, **_ABOUT_A_JOB}
)
def follow_log(
    found: SeenLog, task_id: str, offset: Offset = 0, last_event_id: Annotated[int | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events of a job, and `log` with `text` and `next_offset` when this task has printed something."""
    _mask_for_log(found, task_id)
    return _stream(found, (task_id, offset if last_event_id is None else last_event_id))


@app.post("/api/jobs/{job_name}/cancel", responses=_CHANGING, **_ASKING)
def cancel_job(found: EditedJob) -> Asked:
    """Request that a job is cancelled: its running tasks are killed, and no other task starts."""
    if found.job.state.is_terminal:
        return Asked(requested=False)
    _record("cancel", found)
    requested = inbox.cancel(found.store, found.job.name)
    if requested:
        found.hook.ensure_manager()
    return Asked(requested=requested)


@app.post("/api/jobs/{job_name}/retry", responses={**_CHANGING, **_refusals(status.HTTP_409_CONFLICT)}, **_ASKING)
def retry_job(found: EditedJob) -> Asked:
    """Request a retry of a failed job: failed tasks and those that depend on them run again; 409 if it did not fail."""
    _record("retry", found)
    inbox.retry(found.store, found.job.name)
    found.hook.ensure_manager()
    return Asked(requested=True)


# -- parts -------------------------------------------------------------------------------------------------


def _never_cached(response: Response) -> None:
    response.headers.update(HEADERS)


def _row(store: JobStore, job: Job, counts: TaskCounts) -> JobSummary:
    try:
        mask = masking.load(store.paths(job.name))
    except AirExecutorError:  # the secrets that must not be shown are not known
        job, mask = job.evolve(labels={}), Mask()
    return JobSummary.of(job, counts, mask)


def _is_owned(job: Job, asked: Mapping[str, Any]) -> bool:
    return job.submitted_by is not None and all(
        getattr(job.submitted_by, field) == value for field, value in asked.items()
    )


def _shows_labels(store: JobStore, job: Job, wanted: Sequence[tuple[str, str, str]]) -> bool:
    """Whether these labels are shown as they are: a list must not confirm the guess of a secret."""
    try:
        mask = masking.load(store.paths(job.name))
    except AirExecutorError:
        return False
    return all(mask.text(key) == key and (not equals or mask.text(value) == value) for key, equals, value in wanted)


def _has_labels(job: Job, wanted: Sequence[tuple[str, str, str]]) -> bool:
    return all(key in job.labels and (not equals or job.labels[key] == value) for key, equals, value in wanted)


def _mask_for_log(found: FoundJob, task_id: str) -> Mask:
    if all(task.id != task_id for task in found.store.get_tasks(found.job.name)):
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such task in this job")
    return masking.load(found.store.paths(found.job.name))


def _pieces(log: TaskLog, mask: Mask, offset: int, *, is_over: bool) -> Iterator[bytes]:
    """A log as it is now, piece by piece, without the lines that come meanwhile."""
    end = log.size()
    offset = max(0, end + offset) if offset < 0 else offset
    while offset < end:
        chunk = mask.read_log(log, offset, min(MAX_LOG_BYTES, end - offset), is_over=is_over)
        if chunk.next_offset == offset:
            return
        yield chunk.data
        offset = chunk.next_offset


def _stream(found: FoundJob, followed: tuple[str, int] | None) -> StreamingResponse:
    events = live.events(found.store, found.job.name, followed)
    # Proxies are asked not to keep what is to be seen at once.
    return StreamingResponse(events, media_type="text/event-stream", headers={**HEADERS, "X-Accel-Buffering": "no"})


def _record(event: str, found: FoundJob) -> None:
    """Write a request into Airflow's audit log, before it is carried out: none is carried out without."""
    user, owner = found.rights.user, found.job.submitted_by
    fields = {} if owner is None else owner.model_dump(include={"dag_id", "run_id", "task_id", "map_index"})
    entry = Log(
        event=f"air_executor.{event}_job",
        owner=str(user.get_id()),
        owner_display_name=user.get_name(),
        extra=json.dumps({"job": found.job.name, "conn_id": found.rights.conn_id}),
        **{key: value for key, value in fields.items() if value != ""},
    )
    with create_session() as session:
        session.add(entry)
