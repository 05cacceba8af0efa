"""Which jobs a command is about: those that are named, match a pattern, or pass filters."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from airflow_provider_air_executor.manager.cli import completion
from airflow_provider_air_executor.manager.cli.options import Function

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Job


class Selection(NamedTuple):
    """Which jobs are meant: those with one of the names, and one of the states, and one of the DAGs, and all labels.

    Whatever is empty is passed by all. Names and values may be patterns of a shell: ``nightly-*``.
    """

    names: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    dags: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether all jobs are meant."""
        return not any(self)

    @property
    def only(self) -> str | None:
        """The name of the job, if it is said that one is meant, and which."""
        is_one = len(self.names) == 1 and not any(self[1:]) and not _is_pattern(self.names[0])
        return self.names[0] if is_one else None

    @property
    def are_named(self) -> bool:
        """Whether all jobs are meant one by one, and not by a property."""
        return not any(self[1:]) and not any(map(_is_pattern, self.names))

    def matches(self, job: Job) -> bool:
        """Whether this job is meant."""
        owner = job.submitted_by
        return (
            (not self.names or any(_fits(job.name, name) for name in self.names))
            and (not self.states or job.state in self.states or job.reason in self.states)
            and (not self.dags or (owner is not None and any(_fits(owner.dag_id, dag) for dag in self.dags)))
            and all(_has(job, label) for label in self.labels)
        )

    def jobs(self, jobs: Jobs) -> list[Job]:
        """The jobs, by name.

        :raises JobNotFoundError: if one is named that there is not.
        """
        if self.are_named and self.names:
            return [jobs.get_job(name) for name in dict.fromkeys(self.names)]
        return self.among(jobs, jobs.list_jobs())

    def among(self, jobs: Jobs, some: Iterable[Job]) -> list[Job]:
        """Those of some jobs that are meant, in their order.

        :raises JobNotFoundError: if one is named that there is not.
        """
        found = [job for job in some if self.matches(job)]
        known = {job.name for job in found}
        for name in self.names:
            if name not in known and not _is_pattern(name):
                jobs.get_job(name)
        return found


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


def _fits(text: str, pattern: str) -> bool:
    return text == pattern or fnmatch.fnmatchcase(text, pattern)


def _has(job: Job, label: str) -> bool:
    key, equals, value = label.partition("=")
    return key in job.labels and (not equals or _fits(job.labels[key], value))


class _State(click.ParamType[str]):
    """A state of jobs, or the reason of those that failed."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        words = _state_words()
        if value not in words:
            self.fail(f"{value!r} is none of {', '.join(words)}", param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The words that begin so."""
        return [click.shell_completion.CompletionItem(word) for word in _state_words() if word.startswith(incomplete)]


def _state_words() -> list[str]:
    from airflow_provider_air_executor.jobs.models import JobState, Reason

    return [*JobState, *(reason for reason in Reason if reason not in ("dependency", "skipped"))]


def selects_jobs(action: str, *, all_if_none: bool = False) -> Callable[[Function], Function]:
    """Options of a command about any number of jobs, which gets them as ``selection``.

    :param action: what is done with them, in a word.
    :param all_if_none: whether all jobs are meant if nothing is said.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(
            job_names: tuple[str, ...],
            states: tuple[str, ...],
            labels: tuple[str, ...],
            dags: tuple[str, ...],
            **more: Any,
        ) -> Any:
            selection = Selection(job_names, states, labels, dags)
            if selection.is_empty and not all_if_none:
                raise click.UsageError("name jobs, or say which ones with --state, --label or --dag")
            return function(selection=selection, **more)

        for option in (
            click.option("--dag", "dags", metavar="DAG", multiple=True, help=f"{action} jobs that this DAG submitted."),
            click.option(
                "--label",
                "labels",
                metavar="KEY[=VALUE]",
                multiple=True,
                help=f"{action} jobs with this label; may be repeated.",
            ),
            click.option(
                "--state",
                "states",
                metavar="STATE",
                type=_State(),
                multiple=True,
                help=f"{action} jobs in this state, or failed for this reason (cancelled, timeout, lost, ...).",
            ),
            click.argument("job_names", metavar="JOB...", nargs=-1, shell_complete=completion.job_names),
        ):
            command = option(command)
        return command

    return decorate
