"""Jobs that are submitted by clients: a repeated request gets the first answer, and another job of the name none.

A file that is published with the job, by the same rename, has the digest of the request and the name of the token. It
holds as long as the job is there, and the server remembers the latest requests for longer.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError, JobExistsError, why_unreadable
from airflow_provider_air_executor.jobs import files, masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.server.additions import FILE as ADDITIONS
from airflow_provider_air_executor.server.messages import Submission
from airflow_provider_air_executor.server.problems import ProblemError
from airflow_provider_air_executor.server.tokens import Scope, Token

FILE = "submission.json"
_OURS = frozenset({FILE, ADDITIONS, masking.FILE})
_MOST_ANSWERS = 10_000  # that are remembered, ...
_LONGEST_ANSWER = 4_000  # ... if they have no more bytes: a job may have labels of megabytes
_LONGEST = 10_000  # bytes of the file


class Origin(NamedTuple):
    """How a job was submitted by a client."""

    digest: str  # of the request
    token: str  # the name of the token

    def dump(self) -> bytes:
        """The content of the file."""
        return json.dumps(self._asdict()).encode()


def origin_of(paths: JobPaths) -> Origin | None:
    """How a job was submitted, if a client has submitted it.

    :raises CorruptFileError: if the file is not valid.
    :raises OSError: if it cannot be read now.
    """
    path = paths.attached(FILE)
    try:
        found = json.loads(files.read(path, limit=_LONGEST)[0])
        return Origin(str(found["digest"]), str(found["token"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptFileError(path, why_unreadable(error)) from None
    except OSError as error:
        if error.errno in files.ABSENT:
            return None
        raise


def may_change(jobs: FileJobs, name: str, token: Token) -> bool:
    """Whether somebody may change a job, see :mod:`.access`.

    :raises AirExecutorError: if that cannot be known.
    :raises OSError: if that cannot be known now.
    """
    if token.scope is not Scope.SUBMIT:
        return token.scope is Scope.ADMIN
    origin = origin_of(jobs.store.paths(name))
    return origin is not None and origin.token == token.name


def check_may_change(jobs: FileJobs, name: str, token: Token) -> None:
    """Refuse to change a job of somebody else.

    :raises JobNotFoundError: if there is no such job, which anybody may know.
    :raises ProblemError: if it was not submitted with a token of this name.
    """
    if may_change(jobs, name, token):
        return
    jobs.get_job(name)
    detail = f"job {name!r} was not submitted with token {token.name!r}, and its scope is {token.scope}"
    raise ProblemError(403, "forbidden", detail)


class Submissions:
    """Submits jobs.

    :param jobs: the job filesystem.
    """

    def __init__(self, jobs: FileJobs) -> None:
        self._jobs = jobs
        self._guard = threading.Lock()
        self._answers: OrderedDict[str, Job] = OrderedDict()  # of requests with a key, by their digests

    def submit(self, submission: Submission, token: Token) -> tuple[Job, bool]:
        """Submit a job, or find the one that the same request has submitted before.

        A job that has ended and was removed before its client has asked again is not run once more.

        :return: the job, and whether it is new.
        :raises JobExistsError: if the name is taken by another job.
        """
        for file in submission.attached.keys() & _OURS:
            raise InvalidJobError(f"attached: {file!r} cannot be the name of an attached file")
        origin = Origin(_digest(submission, token), token.name)
        before = self._answers.get(origin.digest)
        if before is not None and not _is_there(self._jobs, submission.name, origin):
            return before, False
        job, is_new = _submit(self._jobs, submission, origin)
        if submission.key is not None:
            self._remember(origin.digest, job)
        self._jobs.ensure_manager()  # also for a request whose first answer was lost because that failed
        return job, is_new

    def _remember(self, digest: str, job: Job) -> None:
        if len(job.model_dump_json()) > _LONGEST_ANSWER:
            return
        with self._guard:
            self._answers[digest] = job
            if len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)


def _is_there(jobs: FileJobs, name: str, origin: Origin) -> bool:
    """Whether the job of a request is still there."""
    found = origin_of(jobs.store.paths(name))
    return found is not None and found.digest == origin.digest


def _submit(jobs: FileJobs, submission: Submission, origin: Origin) -> tuple[Job, bool]:
    attached = {**submission.attached, FILE: origin.dump()}
    if submission.secrets:
        attached[masking.FILE] = masking.dump(submission.secrets)
    owner = submission.submitted_by and submission.submitted_by.evolve(token=origin.token)
    spec = submission.spec.model_dump(exclude_unset=True)
    jobs.prepare()
    try:
        job = jobs.store.submit(submission.name, submission.tasks, submitted_by=owner, attached=attached, **spec)
    except JobExistsError:
        before = origin_of(jobs.store.paths(submission.name))
        if before is None or before.digest != origin.digest:
            raise
        return jobs.get_job(submission.name), False
    return job, True


def _digest(submission: Submission, token: Token) -> str:
    content = {"token": token.name, **submission.model_dump(mode="json", exclude_unset=True)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
