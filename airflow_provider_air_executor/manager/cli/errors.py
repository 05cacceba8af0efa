"""How the errors of commands become a sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli.options import Opened, others

# The records need pydantic, which takes longer to import than all else: what does without it does not wait for it.
if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.store import JobStore

_EXIT_CODES: tuple[tuple[type[exceptions.AirExecutorError], int], ...] = (
    (exceptions.JobNotFoundError, 3),
    (exceptions.JobExistsError, 4),
    (exceptions.JobStateError, 4),
    (exceptions.ManagerRunningError, exceptions.ManagerRunningError.exit_code),
    (exceptions.ServerRunningError, exceptions.ServerRunningError.exit_code),
    (exceptions.InvalidJobError, 2),
    (exceptions.SettingsError, 2),
    (exceptions.AirExecutorError, 1),
)


class Commands(click.Group):
    """Commands whose errors become one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they were added, by subject."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except exceptions.AirExecutorError as error:
            ctx.exit(say(error, _store(ctx)))
        except (BrokenPipeError, KeyboardInterrupt):
            # Somebody has seen enough. What is still buffered must not raise again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(130)
        except OSError as error:
            click.echo(f"air-executor: {_in_words(error, _store(ctx))}", err=True)
            ctx.exit(1)


def _store(ctx: click.Context) -> JobStore | None:
    return ctx.obj.store if isinstance(ctx.obj, Opened) else None


def say(error: exceptions.AirExecutorError, store: JobStore | None) -> int:
    """Print an error; the exit code that it has."""
    click.echo(f"air-executor: {error}{_where_it_is(error, store)}{_what_helps(error)}", err=True)
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def _where_it_is(error: exceptions.AirExecutorError, store: JobStore | None) -> str:
    """Where else there is a job of a name that was not found, if there is one."""
    if store is None or not isinstance(error, exceptions.JobNotFoundError):
        return ""
    found = [str(other) for other in others(store) if (other / "jobs" / error.job_name).is_dir()]
    return f"; one of this name is in {' and '.join(found)} (--base-path)" if found else ""


def _what_helps(error: exceptions.AirExecutorError) -> str:
    """What helps, if something does."""
    if isinstance(error, exceptions.JobsAwayError):
        return ". Is the address right, and does `air-executor serve` run there? What was submitted goes on without it"
    return " (--replace)" if isinstance(error, exceptions.JobExistsError) else ""


def _in_words(error: OSError, store: JobStore | None) -> str:
    """The message of a failed operation: the path, the error, and the user who may do it."""
    path = error.filename if isinstance(error.filename, str) else str(store.base_path) if store else None
    if path is None:
        return str(error)
    owner = _owner(Path(path)) if error.errno in (errno.EACCES, errno.EPERM) else None
    return f"{path}: {error.strerror}" + (f"; {owner[0]} belongs to {owner[1]}, who may do this" if owner else "")


def _owner(path: Path) -> tuple[Path, str] | None:
    """The directory of another user that denies access to a path, and the name of the user."""
    import pwd

    for each in (path, *path.parents):
        with contextlib.suppress(OSError):
            if not os.access(each, os.X_OK | os.W_OK) and (uid := each.stat().st_uid) != os.geteuid():
                with contextlib.suppress(KeyError):
                    return each, pwd.getpwuid(uid).pw_name
                return each, f"user {uid}"
    return None
