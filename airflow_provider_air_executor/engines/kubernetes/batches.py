"""Batches: several attempts of a job in one Pod, whose only container runs them one after the other.

The container prints a frame where the output of an attempt begins and ends: a NUL byte, ``air-executor``, the token of
the attempt, and a word with its values; ``frames.py`` reads them. The termination message of the container also has
the number of attempts that it has begun, so that another Pod can run the rest if it ends early.

A Pod of one attempt is a batch of one, with a shorter script and a shorter message; see ``manifest.py``.
"""

from __future__ import annotations

import math
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.kubernetes.manifest import (
    MESSAGE_BYTES,
    RUN_LABEL,
    TASK_LABEL,
    TASKS_ANNOTATION,
    attempt_annotations,
    container_of,
    literally,
    pod_name,
    shim,
)
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs.attempt_record import used_of_times
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system.environment import TASK_VARIABLES, VARIABLE

# Characters of one argument of a command line, which Linux limits to 128 KiB.
LARGEST_SCRIPT = 20_000  # of all attempts together
LARGEST_TEXT = 5_000  # of one attempt
_READ_ONLY = {"UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS"}  # variables that a shell does not unset
_SCRIPT = shim("batch")


@dataclass(eq=False)
class BatchedAttempt:
    """An attempt of a Pod, and how it stands.

    :param attempt: None if this manager has adopted the Pod, but has not been asked for this attempt yet.
    :param token: the word by which the Pod knows it, used once.
    :param task_id: its task.
    :param number: of the attempt.
    :param text: the lines of sh that start it; empty if its Pod has the script of one attempt.
    :param log_path: the log of its task.
    :param log_start: the size of the log in bytes when the attempt was started.
    """

    attempt: Attempt | None
    token: str
    task_id: str = ""
    number: int = 1
    text: str = ""
    log_path: Path = Path()
    log_start: int = 0
    skip: int = 0  # bytes of its output that an earlier manager has written
    # As the manager knows it.
    has_started: bool = False
    cancelling: bool | None = None  # whether it is killed; None: it is not cancelled
    location: str = ""
    is_due: bool = False  # whether its start will be emitted
    ended: Ended | None = None
    # As the container prints it.
    begun_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    used_before: Usage | None = None  # by the container, when it began
    usage: Usage | None = None
    size: int = 0  # of its result in bytes
    result: bytearray | None = None  # as much of it as has come; None: its output has not ended
    spawn_error: str = ""
    was_signalled: bool = False  # whether the container got SIGTERM while it ran
    is_done: bool = False  # whether all of it has come
    is_cut_off: bool = False  # whether the log says that its end is missing

    @property
    def handle(self) -> dict[str, Any]:
        """Its entry in the handle of its Pod."""
        names = ("task_id", "number", "token", "log_start", "text")
        return {name: getattr(self, name) for name in names}

    @property
    def has_whole_result(self) -> bool:
        """Whether the result is as long as it was in the Pod."""
        return len(self.result or b"") == self.size


def can_share(task: Task) -> bool:
    """Whether a task can share a Pod: sh must be able to set its variables."""
    return all(VARIABLE.fullmatch(name) and name not in _READ_ONLY for name in task.env or {})


def attempt_text(task: Task, variables: Mapping[str, str]) -> str:
    """The lines of sh that start an attempt.

    :param variables: those that describe it to its command, but for the path of its result, which all attempts share.
    """
    given = {name: value for name, value in (task.env or {}).items() if name not in TASK_VARIABLES}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in {**given, **variables}.items()]
    return "\n".join([*exports, f"start {shlex.join([task.cwd or '', task.command, *task.args])}"])


def complete(manifest: Mapping[str, Any], attempts: Sequence[BatchedAttempt], grace: float) -> dict[str, Any]:
    """The manifest of the Pod of a batch.

    :param manifest: that of its first attempt, without its variables.
    :param grace: seconds between SIGTERM and SIGKILL.
    """
    container = container_of(manifest)
    metadata = manifest["metadata"]
    settings = f"ae_grace={max(1, math.ceil(grace))}\nae_token={metadata['labels'][RUN_LABEL]}\n"
    script = f"{settings}{_SCRIPT}" + "".join(
        f"task() {{\n{each.text}\n}}\npart {number} {each.token}\n" for number, each in enumerate(attempts, 1)
    )
    script += 'ae_remove_result\nrm -f "$ae_result.times"\n'
    command = {"command": ["/bin/sh", "-c", literally(script), "air-executor"], "args": []}
    containers = [{**item, **command} if item["name"] == container else item for item in manifest["spec"]["containers"]]
    labels = {name: value for name, value in metadata["labels"].items() if name != TASK_LABEL}
    annotations = {**metadata["annotations"], TASKS_ANNOTATION: " ".join(each.task_id for each in attempts)}
    metadata = {**metadata, "labels": labels, "annotations": annotations}
    return {**manifest, "metadata": metadata, "spec": {**manifest["spec"], "containers": containers}}


def renew(manifest: Mapping[str, Any], attempt: Attempt) -> dict[str, Any]:
    """The manifest of another Pod like that of a batch.

    :param manifest: without the script.
    :param attempt: the first that the other Pod runs.
    """
    token = secrets.token_hex(8)
    metadata = manifest["metadata"]
    labels = {**metadata["labels"], RUN_LABEL: token}
    annotations = {**metadata["annotations"], **attempt_annotations(attempt)}
    metadata = {**metadata, "name": pod_name(attempt, token), "labels": labels, "annotations": annotations}
    return {**manifest, "metadata": metadata}


class Message(NamedTuple):
    """The termination message of the container of a batch.

    :param begun: how many attempts have begun.
    :param exit_code: of the last of them; None if it has not ended.
    :param was_signalled: whether the container got SIGTERM while that ran.
    """

    begun: int
    exit_code: int | None = None
    size: int = 0
    ended_at: datetime | None = None
    result: bytes | None = None
    was_signalled: bool = False


def read_message(text: str) -> Message | None:
    """Read a termination message; None if it is not one of ours."""
    line, _, rest = text.partition("\n")
    numbers = line.split()
    if not numbers or len(numbers) > 5 or not all(word.isascii() and word.isdigit() for word in numbers):
        return None
    begun, *end = map(int, numbers)
    if len(end) < 2:
        return Message(begun)
    exit_code, size, *more = end
    result = rest.encode() if 0 < size <= MESSAGE_BYTES else None
    return Message(begun, exit_code, size, read_time(more[0]) if more else None, result, was_signalled=more[1:] == [1])


def read_usage(words: Sequence[str]) -> Usage | None:
    """What a container says that it has used; None if these are no such words.

    :param words: the four that ``times`` prints, and perhaps the most memory in bytes.
    """
    if not 4 <= len(words) <= 5:
        return None
    try:  # another shell may print anything
        used = used_of_times(words[:4], *words[4:])
        return Usage(cpu_seconds=used.cpu_seconds, max_memory=used.max_memory)
    except ValueError:
        return None


def read_time(seconds: str | int | None) -> datetime:
    """A time of the Pod; the present one if its image has no ``date``."""
    try:
        return datetime.fromtimestamp(int(seconds or ""), UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.now(UTC)
