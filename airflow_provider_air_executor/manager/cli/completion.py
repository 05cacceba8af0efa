"""What a shell completes: names of jobs, and ids of their tasks.

It reads names of directories, and for tasks one file, without the records: whoever presses the key waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import click

from airflow_provider_air_executor.jobs import files

_DEFAULT = ".air-executor"


def job_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The names of jobs that begin so."""
    if _is_elsewhere(ctx):
        return []
    with contextlib.suppress(OSError), os.scandir(_base_path(ctx) / "jobs") as entries:
        return sorted(
            entry.name for entry in entries if entry.name.startswith(incomplete or "") and entry.name[0] != "."
        )
    return []


def task_ids(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The ids of the tasks of the job that was named before."""
    if _is_elsewhere(ctx):
        return []
    # Click has not read the arguments if it is the value of an option that is completed.
    job_name = ctx.params.get("job_name") or next(iter(ctx.params.get("job_names") or ctx.args), None)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        tasks = json.loads((_base_path(ctx) / "jobs" / str(job_name) / "tasks.json").read_bytes())
        return [task["id"] for task in tasks if str(task["id"]).startswith(incomplete)]
    return []


def _is_elsewhere(ctx: click.Context) -> bool:
    """Whether the command works on another machine, which is not asked while somebody types."""
    before = ctx.parent.params if ctx.parent is not None else {}
    return any(params.get(name) is not None for name in ("url", "ssh") for params in (ctx.params, before))


def _base_path(ctx: click.Context) -> Path:
    """Where commands look for jobs, but for a base path that config.yaml names."""
    given = ctx.params.get("base_path") or (ctx.parent.params.get("base_path") if ctx.parent else None)
    if given:
        return Path(files.expanded(given))
    if not os.path.isdir(_DEFAULT):
        home = Path(files.expanded(os.environ.get("AIRFLOW_HOME") or "~/airflow"))
        found = list(home.glob("air-executor*/jobs"))
        if len(found) == 1:
            return found[0].parent
    return Path(_DEFAULT)
