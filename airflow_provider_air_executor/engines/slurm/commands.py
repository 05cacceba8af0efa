"""Slurm's dialect: its command lines (``sbatch``, ``squeue``, ``scancel``), and what its answers mean."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_air_executor.engines.batch.dialect import Kept, Listed, Phase, State, Submission
from airflow_provider_air_executor.jobs.models import Reason, Resources
from airflow_provider_air_executor.jobs.usage import Usage

NAME = "slurm"
TITLE = "Slurm"
COMMANDS: Sequence[str] = ("sbatch", "squeue", "scancel")
IDENTITY = "$SLURM_JOB_ID"
GROUP = "*/job_$SLURM_JOB_ID/*"

_COMMENT = "air-executor:"
_MEBIBYTE = 1 << 20
_OPTION = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")

# What ends a Slurm job before its time, and what that is to us.
_REASONS = {
    "TIMEOUT": Reason.TIMEOUT,
    "DEADLINE": Reason.TIMEOUT,
    "OUT_OF_MEMORY": Reason.SIGNAL,
    "CANCELLED": Reason.CANCELLED,
    "REVOKED": Reason.CANCELLED,
    "PREEMPTED": Reason.LOST,
}
_OVER = {*_REASONS, "COMPLETED", "FAILED", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"}
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
# Why a job waits that will wait for ever.
_NEVER = {
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "BadConstraints",
    "AccountNotAllowed",
    "QOSNotAllowed",
    "InvalidAccount",
    "InvalidQOS",
    "DependencyNeverSatisfied",
    "MaxMemPerLimit",
    "launch failed requeued held",
}
# The same of limits for each job or node. Those of a group (Grp) are also given by one that is full at the moment.
_NEVER_FITS = re.compile(r"(QOS|Assoc)(Max(?!Submit|Jobs)\w*Per(Job|Node)\w*|Min\w+)")
# What sbatch says when the same call may succeed later.
_SAID_FOR_NOW = re.compile(
    "unable to contact|timed out|temporarily unable|zero bytes|connection refused|connect failure|"
    "submit limit|resource temporarily|slurmctld.*not responding|munge|protocol authentication",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"\b(QOS|Assoc)[A-Z]\w+")  # the limit by which it refuses, where it names that
# The variables that Slurm's commands get. All of them become those of the job, where others could read them, and a
# manager that itself runs in a job must not pass its own on. Those of the locale are not among them: where a node has
# not that locale, its bash would say so in the log of the task, before it reads the first line of the script.
_FOR_COMMANDS = re.compile(
    r"PATH|HOME|USER|LOGNAME|TZ|LD_LIBRARY_PATH|SLURM_CONF|SLURM_CLUSTERS|SLURM_SACK_SOCKET|SBATCH_.*"
)
# Options that decide how the attempt is known, where its output goes, or as whom it runs.
_OURS = {
    "array",
    "chdir",
    "error",
    "export",
    "export-file",
    "get-user-env",
    "gid",
    "help",
    "hold",
    "input",
    "job-name",
    "no-requeue",
    "open-mode",
    "output",
    "parsable",
    "quiet",
    "requeue",
    "test-only",
    "uid",
    "usage",
    "version",
    "wait",
    "wrap",
}
_NOT_FOR_SBATCH = {"SBATCH_ARRAY_INX", *(f"SBATCH_{name.upper().replace('-', '_')}" for name in _OURS)}
# Options of which sbatch takes one, or of which one decides what another one means: the nearest one counts.
_GROUPS = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"cpus-per-task", "cpus-per-gpu"},
    {"gres", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"},
    {"exclusive", "oversubscribe"},
)


# Times and sizes as sacct prints them.
_TIME = re.compile(r"(\d+-)?(\d+:)?\d+:\d+(\.\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)")
# Variables that a shell does not unset, or that belong to another machine.
_NOT_EXPORTED = re.compile(
    r"SLURM_(?!CONF).*|SBATCH_.*|BASHOPTS|SHELLOPTS|PPID|UID|EUID|GROUPS|PWD|OLDPWD|SHLVL|_|HOSTNAME"
)


def is_for_commands(variable: str) -> bool:
    """Whether Slurm's commands get this variable of the manager's environment."""
    return _FOR_COMMANDS.fullmatch(variable) is not None and variable not in _NOT_FOR_SBATCH


def is_exported(variable: str) -> bool:
    """Whether a task gets this variable."""
    return _NOT_EXPORTED.fullmatch(variable) is None


def check_options(given: Mapping[str, Any]) -> dict[str, str]:
    """Options of ``sbatch`` by their long names, with their values as in a command line; ``""`` for a mere flag.

    :raises ValueError: naming the one that is not valid, or that is not free to choose.
    """
    options = {}
    for key, value in _check_words(given).items():
        name = key.replace("_", "-")
        ours = [option for option in _OURS if option.startswith(name)]  # sbatch takes the beginning of a name, too
        if ours:
            raise ValueError(f"{key}: the option {ours[0]} of sbatch is given by air-executor itself")
        if value is not None and value is not False:
            options[name] = "" if value is True else str(value)
    return options


def _check_words(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options if each has a name and a value as a command line has them.

    :raises ValueError: naming the one that is not valid.
    """
    for name, option in value.items():
        if not isinstance(name, str) or not _OPTION.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an option")
        if option is not None and not isinstance(option, str | int | float):
            raise ValueError(f"option {name!r} must be a text, a number, true or false")
        if not str(option).isprintable():
            raise ValueError(f"option {name!r} must be printable")
    return value


def nearest(*layers: Mapping[str, str]) -> dict[str, str]:
    """Options put together, the nearest layer last: of those that exclude each other, the nearest one is left."""
    options: dict[str, str] = {}
    for layer in layers:
        for group in _GROUPS:
            if not group.isdisjoint(layer):
                options = {name: value for name, value in options.items() if name not in group}
        options.update(layer)
    return options


def resource_options(resources: Resources | None) -> dict[str, str]:
    """The resources of a task as options of ``sbatch``: whole processors, mebibytes and minutes."""
    options = {}
    if resources is not None:
        if resources.cpus is not None:
            options["cpus-per-task"] = str(math.ceil(resources.cpus))
        if resources.memory is not None:
            options["mem"] = f"{math.ceil(resources.memory / _MEBIBYTE)}M"
        if resources.gpus:
            options["gres"] = f"gpu:{resources.gpus}"
        if resources.time is not None:
            options["time"] = str(math.ceil(resources.time / 60))
    return options


# What one attempt runs is read by the shell that is there, since a shell more for each costs as much as the rest of it.
# One that has a record has been run, or is not to be.
_WAIT = """\
ae_n=0
while [ ! -r "$ae_handle" ] && [ ! -e "${ae_handle%.on-*}" ] && [ $ae_n -lt 30 ]; do ae_n=$((ae_n + 1)); sleep 1; done
"""
# One that has a record but no handle has been run by another batch job of the same attempt. If there is neither, sh
# says in the log that it cannot open the handle: probably the node does not see the job filesystem.
_RUN = """\
if [ -r "$ae_handle" ] || [ ! -e "${ae_handle%.on-*}" ]; then . "$ae_handle"; fi
"""


def submit(submissions: Sequence[Submission]) -> tuple[list[str], bytes]:
    """The command line that submits one batch job for one attempt or several, and its standard input.

    The handles are named in it. They are not what sbatch is given, since that refuses carriage returns and keeps a
    copy, in which others could read what a task has in its environment.

    :param submissions: the options are those of the first.
    """
    first = submissions[0]
    options = dict(first.options)
    own_comment = options.pop("comment", "")
    name, log_path = first.name, first.log_path
    if len(submissions) > 1:
        name, log_path = f"{name} and {len(submissions) - 1} more", "/dev/null"
        if first.seconds is not None:
            options["time"] = str(math.ceil(sum(each.seconds or 0 for each in submissions) / 60))
    # A percent sign in it stands for something, and a backslash turns that off.
    output = "/dev/null" if "\\" in log_path else log_path.replace("%", "%%")
    words = [
        "sbatch",
        "--parsable",
        "--no-requeue",
        "--export=ALL",  # of what it is started with, which is next to nothing; NONE and NIL start a login shell there
        "--chdir=/",
        "--open-mode=append",
        f"--output={output}",
        f"--job-name={name}",
        f"--comment={_COMMENT}{','.join(each.token for each in submissions)} {own_comment}".rstrip(),
        *(f"--{name}={value}" if value else f"--{name}" for name, value in options.items()),
    ]
    paths = [shlex.quote(each.handle_path) for each in submissions]
    if len(submissions) == 1:
        return words, os.fsencode(f"#!/bin/sh\nae_handle={paths[0]}\n{_WAIT}{_RUN}")
    # A signal is meant for the one that runs, and the next ones have their turn all the same.
    text = f"#!/bin/sh\ntrap : TERM HUP INT QUIT USR1 USR2\nfor ae_handle in {' '.join(paths)}; do\n{_WAIT}"
    return words, os.fsencode(f'{text}if [ -r "$ae_handle" ]; then (. "$ae_handle"); fi\ndone\n')


def number(output: str) -> str | None:
    """The number of the job that sbatch has submitted; whatever a site prints before it is not."""
    found = [line.partition(";")[0].strip() for line in output.splitlines()]
    return next((text for text in reversed(found) if text.isascii() and text.isdecimal()), None)


def may_pass(said: str) -> bool:
    """Whether what sbatch has said may pass: of limits, only that of the number of jobs submitted."""
    limit = _LIMIT.search(said)
    return "Submit" in limit[0] if limit else bool(_SAID_FOR_NOW.search(said))


def query() -> list[str]:
    """The command line that lists the user's batch jobs."""
    return ["squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", "--format=%i|%T|%r|%N|%k"]


def listed(output: str) -> Iterator[Listed]:
    """The batch jobs in what squeue prints."""
    for line in output.splitlines():
        number, word, why, rest = [*line.split("|", 3), "", "", ""][:4]
        nodes, _, comment = rest.partition("|")
        tokens = comment.strip().removeprefix(_COMMENT).partition(" ")[0].split(",")
        yield Listed(number, state(word, why, nodes), tokens)


def state(word: str, why: str, nodes: str = "") -> State:
    """How a batch job stands, from Slurm's words for its state and the reason of that."""
    phase = Phase.WAITING if word in _WAITING else Phase.OVER if word in _OVER else Phase.RUNNING
    why = "" if why == "None" else why
    return State(word, phase, why, nodes, reason=_REASONS.get(word), waits_for_ever=waits_for_ever(why))


def accounting(numbers: Sequence[str]) -> list[str]:
    """The command line that shows what batch jobs have used, and each of their steps."""
    words = ["sacct", "--noheader", "--parsable2", "--noconvert", f"--jobs={','.join(numbers)}"]
    return [*words, "--format=JobIDRaw,State,TotalCPU,AveCPU,NTasks,MaxRSS"]


def kept(output: str) -> dict[str, Kept]:
    """What it prints: processor time of a job, and the most memory of one of its steps.

    The total of a step that was killed lacks what its processes have used; the average of its tasks, which Slurm has
    sampled now and then, does not. Both are 0 of a job of which nothing was measured.
    """
    found: dict[str, _Measured] = {}
    for line in output.splitlines():
        name, word, total, average, tasks, memory = [*line.split("|"), "", "", "", "", ""][:6]
        job = found.setdefault(name.partition(".")[0], _Measured())
        job.is_final = job.is_final and word.partition(" ")[0] in _OVER
        job.total = max(job.total, _seconds(total))
        job.sampled += _seconds(average) * (int(tasks) if tasks.isdecimal() else 1)
        job.memory = max(job.memory, _bytes(memory))
    return {number: Kept(job.is_final, job.usage) for number, job in found.items()}


@dataclass
class _Measured:
    """What was measured of a job: seconds, and bytes."""

    is_final: bool = True
    total: float = 0.0
    sampled: float = 0.0
    memory: int = 0

    @property
    def usage(self) -> Usage | None:
        seconds = max(self.total, self.sampled)
        return Usage(cpu_seconds=seconds, max_memory=self.memory or None) if seconds or self.memory else None


def _seconds(text: str) -> float:
    """A time of sacct, ``1-02:03:04`` or ``03:04.567``, in seconds; 0 if it is none."""
    if not _TIME.fullmatch(text):
        return 0.0
    days, _, clock = text.rpartition("-")
    return float(days or 0) * 86400 + sum(
        float(part) * 60.0**power for power, part in enumerate(reversed(clock.split(":")))
    )


def _bytes(text: str) -> int:
    """A size of sacct, ``1234K``, in bytes; 0 if it is none."""
    found = _SIZE.fullmatch(text)
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")) if found else 0


def cancel(numbers: Sequence[str], signal: str | None = None) -> list[str]:
    """The command line that ends batch jobs, or sends a signal to all of their processes."""
    return ["scancel", *([] if signal is None else [f"--signal={signal}", "--full"]), *numbers]


def waits_for_ever(reason: str) -> bool:
    """Whether what waits for this reason waits for ever."""
    return reason in _NEVER or _NEVER_FITS.fullmatch(reason) is not None
