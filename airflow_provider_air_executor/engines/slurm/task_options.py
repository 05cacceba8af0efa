"""The field ``slurm`` of a task: options of ``sbatch``, by their long names, and how many tasks share a batch job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_air_executor.engines.batching import pop_tasks_per_submission
from airflow_provider_air_executor.engines.slurm import commands


def check_options(given: Any) -> None:
    """Check the options of a task.

    :raises ValueError: naming the one that is not valid.
    """
    if not isinstance(given, Mapping):
        raise ValueError("must be a mapping of options")
    options = dict(given)
    pop_tasks_per_submission(options, commands.NAME)
    commands.check_options(options)
