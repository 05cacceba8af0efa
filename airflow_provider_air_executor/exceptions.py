"""The errors of this package. Each carries its facts and says what to do next."""

from __future__ import annotations

from pathlib import Path


class AirExecutorError(Exception):
    """Base class of every error raised by this package."""


class InvalidJobError(AirExecutorError, ValueError):
    """A job, a task or a request is not valid; the message names the field."""


class BasePathError(AirExecutorError, OSError):
    """The directories of a job filesystem cannot be made; nothing was written.

    :param whose: what says that they are to be there.
    """

    def __init__(self, base_path: Path | str, whose: str, why: str) -> None:
        super().__init__(
            f"the job filesystem {base_path} of {whose} cannot be made: {why}; correct its base_path, or make the "
            "directory and give it to this user"
        )
        self.base_path = Path(base_path)
        self.whose, self.why = whose, why


class JobNotFoundError(AirExecutorError, LookupError):
    """There is no job of this name below the base path."""

    def __init__(self, job_name: str, base_path: Path | str) -> None:
        super().__init__(f"there is no job {job_name!r} in {base_path}; `air-executor status` lists the jobs there")
        self.job_name = job_name
        self.base_path = Path(base_path)


class JobRemovedError(JobNotFoundError):
    """The job that was waited for has ended, and was removed before its end was read.

    :param ended: how it had ended, in words.
    """

    def __init__(self, job_name: str, base_path: Path | str, ended: str) -> None:
        super().__init__(job_name, base_path)
        why = "by hand, by `air-executor prune`, or by its manager (keep_jobs, keep_days)"
        again = "Another try of the Airflow task submits it anew"
        self.args = (
            f"job {job_name!r} was removed from {base_path} after it had {ended}, with its results: {why}. {again}",
        )
        self.ended = ended


class JobExistsError(AirExecutorError):
    """The name of the job is taken; nothing was written."""

    def __init__(self, job_name: str, base_path: Path | str, owner: str = "") -> None:
        owned = f" (submitted by {owner})" if owner else ""
        super().__init__(
            f"a job {job_name!r} exists already in {base_path}{owned}; "
            "choose another name, or delete that job once it has ended"
        )
        self.job_name = job_name
        self.base_path = Path(base_path)
        self.owner = owner


class NotRemovedError(AirExecutorError):
    """A job that was to be removed is gone from the list, and some of its files are still there.

    :param path: the directory in which they are.
    :param why: what could not be removed, and why.
    """

    def __init__(self, job_name: str, path: Path | str, why: str) -> None:
        super().__init__(f"job {job_name!r} could not be removed: {why}; remove {path} as a user who may do that")
        self.job_name = job_name
        self.path = Path(path)
        self.why = why


class JobStateError(AirExecutorError):
    """The job is in a state in which this cannot be done."""


class CorruptFileError(AirExecutorError):
    """A file of the job filesystem cannot be read, also after a few retries."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path} cannot be read: {why}")
        self.path = Path(path)
        self.why = why


class JobFailedError(AirExecutorError):
    """The job that was waited for has ended as failed.

    :param reason: the word that says why, if there is one; see
        :class:`~airflow_provider_air_executor.jobs.models.Reason`.
    """

    def __init__(self, job_name: str, details: str, reason: str | None = None) -> None:
        super().__init__(f"job {job_name!r} failed: {details}")
        self.job_name = job_name
        self.details = details
        self.reason = reason


class JobCancelledError(JobFailedError):
    """The job that was waited for was cancelled."""


class JobLostError(JobFailedError):
    """The process of a task was killed, or the machine restarted; the command itself is not at fault."""


class JobInvalidError(JobFailedError):
    """The files of the job are not valid, or one of its commands cannot be started: to try again is of no use."""


class OutputError(AirExecutorError, ValueError):
    """The output of a task in ``$AIR_EXECUTOR_OUTPUT`` is not JSON, is too long, or cannot be stored."""

    def __init__(self, job_name: str, task_id: str, why: str) -> None:
        super().__init__(f"the output of task {task_id!r} of job {job_name!r} cannot be taken: {why}")
        self.job_name = job_name
        self.task_id = task_id
        self.why = why


class JobTimeoutError(AirExecutorError, TimeoutError):
    """The job had not ended when the time allowed for it was over."""


class SettingsError(AirExecutorError, ValueError):
    """A setting of the manager has an invalid value; the message names it and where it was set."""


class ManagerError(AirExecutorError):
    """The manager cannot start, or does not answer."""


class NoLocksError(ManagerError):
    """The file system of a base path has no locks, which keep two managers from running the same jobs."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(
            f"{path} cannot be locked ({why}), and so no manager can run there; have its file system mounted with "
            "locks (flock; NFS needs a lock service, Lustre the option flock), or choose another base path"
        )
        self.path = Path(path)
        self.why = why


class UnfitBasePathError(ManagerError):
    """The file system of a base path cannot do what a promise needs, so no manager is to run there.

    :param kind: of the file system, ``fuse.rclone``; empty if that is not known.
    :param why: what it cannot do, what that would mean, and what helps.
    """

    def __init__(self, base_path: Path | str, kind: str, why: str) -> None:
        which = f" ({kind})" if kind else ""
        super().__init__(f"no manager can run on {base_path}: its file system{which} fails at {why}")
        self.base_path = Path(base_path)
        self.kind = kind
        self.why = why


class ManagerRunningError(ManagerError):
    """Another manager holds this base path."""

    exit_code = 4  # of the command line

    def __init__(self, base_path: Path | str, pid: int | None, host: str = "") -> None:
        holder = f"process {pid}" if pid else "another process"
        where = f" of {host}" if host else ""
        super().__init__(f"a manager is already running on {base_path} ({holder}{where}); there can be one only")
        self.base_path = Path(base_path)
        self.pid = pid
        self.host = host


class JobsAwayError(AirExecutorError, OSError):
    """A manager on another machine cannot be reached now, which says nothing of its jobs.

    :param where: its address.
    :param why: what happened when it was asked.
    :param since: when it was reached for the last time, or asked first, in seconds since 1970; None: that is not known.
    """

    def __init__(self, where: str, why: str, since: float | None = None) -> None:
        super().__init__(f"the manager at {where} cannot be reached now: {why}")
        self.where = where
        self.why = why
        self.since = since


class AccessError(AirExecutorError):
    """A manager on another machine refuses the token, or what is asked with it."""


class ProtocolError(AirExecutorError):
    """What answers does not speak a version of the protocol that is understood here."""


class ServerRunningError(ManagerError):
    """Another server holds this base path."""

    exit_code = 4  # of the command line

    def __init__(self, base_path: Path | str, pid: int | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"a server is already running on {base_path} ({holder}); there can be one only")
        self.base_path = Path(base_path)
        self.pid = pid


class SshError(AirExecutorError):
    """Another machine cannot be reached by SSH like this, however often it is tried."""


def why_unreadable(error: Exception) -> str:
    """Why a text is not JSON or YAML that can be read; for one that is nested too deep, versions of Python differ."""
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
