"""Several attempts of a job in one Pod, whose only container runs them one after the other.

Where the output of one begins and ends is told by frames in the output of the container: a NUL byte, ``air-executor``,
the token of the attempt, and what there is to tell of it. A result comes as text between two of them. How far the
container has come stands in its termination message too, so that the rest can be run by another Pod if it ends early.
"""

from __future__ import annotations

import math
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.kubernetes.attended import Run
from airflow_provider_air_executor.engines.kubernetes.output import CUT_OFF, THROWN_AWAY, Output, append
from airflow_provider_air_executor.engines.kubernetes.pods import (
    BEGIN_BY_SIGNALS,
    FIND_RESULT,
    MESSAGE_BYTES,
    PRINT_BEGINNING,
    REMOVE_RESULT,
    RUN_LABEL,
    TASK_LABEL,
    TASKS_ANNOTATION,
    WAIT,
    attempt_annotations,
    container_of,
    literally,
    pod_name,
)
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.engines.shim import FIND
from airflow_provider_air_executor.jobs.models import Task, printable
from airflow_provider_air_executor.system.environment import TASK_VARIABLES, VARIABLE

# Characters of what becomes one argument of a command line, of which Linux takes 128 KiB.
LARGEST_SCRIPT = 20_000
LARGEST_PART = 5_000
_READ_ONLY = {"UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS"}  # variables that a shell does not let go
_DIRECTORY, _COMMAND = "directory", "command"  # what an attempt could not be started for

# What sh, the first process of the container, runs; the parts follow, each as a function `task` and a call of `part`
# with its place and its token. See pods.py on signals.
# One that does not end by SIGTERM is killed after the grace by sh itself. Kubernetes would end sh too, and that has to
# tell of the end, and that it has not come to the rest.
# An attempt is begun in a process of its own, which becomes the command: directory and variables are that of it alone.
_SCRIPT = (
    FIND
    + BEGIN_BY_SIGNALS
    + f"""\
ae_kill_later() {{ (sleep $ae_grace; kill -KILL $ae_child) & }}
{PRINT_BEGINNING} $ae_token
frame() {{ printf '\\000air-executor %s\\n' "$*"; }}
start() {{
if [ -n "$1" ]; then CDPATH= cd -- "$1/." || {{ frame $AIR_EXECUTOR_RUN spawn {_DIRECTORY} "$1"; exit 126; }}; fi
shift
air_executor_find "$1" || {{ unset IFS; frame $AIR_EXECUTOR_RUN spawn {_COMMAND} "$1"; exit 127; }}
shift
exec "$ae_found" "$@"
}}
leave() {{
echo ${{ae_last:-0}} >$ae_say
frame $1 left
sleep 1
exit 143
}}
part() {{
if [ -n "$ae_ended" ]; then leave $2; fi
{REMOVE_RESULT}
set -- $1 $2 $(date -u +%s)
echo $1 >$ae_say || exit 97
frame $2 begin $3
if [ -n "$ae_ended" ]; then leave $2; fi
{{ if [ -n "$ae_ended" ]; then exit 143; fi; export AIR_EXECUTOR_RUN=$2; task; }} </dev/null 2>&1 &
ae_child=$!
{WAIT}
{FIND_RESULT}
set -- $1 $2 $ae_code $ae_size $(date -u +%s)
frame $2 end $3 $4 $ae_told $5
if [ $ae_size -gt 0 ]; then cat "$ae_result"; fi
frame $2 done
ae_last="$1 $3 $4 $5 $ae_told"
echo $ae_last >$ae_say
if [ $ae_size -gt 0 ] && [ $ae_size -le {MESSAGE_BYTES} ]; then cat "$ae_result" >>$ae_say; fi
}}
echo 0 >$ae_say
"""
)
_FRAME = re.compile(rb"\0air-executor ([0-9a-f]{16}) (begin|spawn|end|done|left)([^\n]*)\n")
_FRAME_BEGINS = b"\0air-executor "
_LONGEST_FRAME = 8192


@dataclass(eq=False)
class Part(Run):
    """An attempt that shares its Pod.

    :param task_id: its task.
    :param number: of the attempt.
    :param text: what starts it, in the words of sh.
    :param log_path: the log of its task.
    :param log_start: how long that was when the attempt was started.
    """

    task_id: str = ""
    number: int = 1
    text: str = ""
    log_path: Path = Path()
    log_start: int = 0
    skip: int = 0  # bytes of its output that an earlier manager has written
    begun_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    size: int = 0  # of its result
    result: bytes | None = None
    spawn_error: str = ""
    was_signalled: bool = False  # whether the container was told to end while it ran
    is_done: bool = False  # all of it has come
    is_cut_off: bool = False
    is_seen: bool = False  # whether somebody looks after it since it has begun

    def note(self) -> dict[str, Any]:
        """What is noted of it beside the Pod."""
        names = ("task_id", "number", "token", "log_start", "text")
        return {name: getattr(self, name) for name in names}

    @property
    def result_is_whole(self) -> bool:
        """Whether the result is as long as it was in the Pod."""
        return len(self.result or b"") == self.size


def can_share(task: Task) -> bool:
    """Whether a task can be run by a Pod that runs others too: sh must be able to set its variables."""
    return all(VARIABLE.fullmatch(name) and name not in _READ_ONLY for name in task.env or {})


def part_text(task: Task, variables: Mapping[str, str]) -> str:
    """What starts an attempt, in the words of sh.

    :param variables: what it is told of itself, but for where it may leave a result, which is the same for all.
    """
    given = {name: value for name, value in (task.env or {}).items() if name not in TASK_VARIABLES}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in {**given, **variables}.items()]
    return "\n".join([*exports, f"start {shlex.join([task.cwd or '', task.command, *task.args])}"])


def complete(manifest: Mapping[str, Any], parts: Sequence[Part], grace: float) -> dict[str, Any]:
    """The Pod that runs some attempts.

    :param manifest: that of the first, without its variables.
    :param grace: seconds between SIGTERM and SIGKILL.
    """
    container = container_of(manifest)
    metadata = manifest["metadata"]
    settings = f"ae_grace={max(1, math.ceil(grace))}\nae_token={metadata['labels'][RUN_LABEL]}\n"
    script = f"{settings}{_SCRIPT}" + "".join(
        f"task() {{\n{part.text}\n}}\npart {place} {part.token}\n" for place, part in enumerate(parts, 1)
    )
    script += REMOVE_RESULT
    command = {"command": ["/bin/sh", "-c", literally(script), "air-executor"], "args": []}
    containers = [{**item, **command} if item["name"] == container else item for item in manifest["spec"]["containers"]]
    labels = {name: value for name, value in metadata["labels"].items() if name != TASK_LABEL}
    annotations = {**metadata["annotations"], TASKS_ANNOTATION: " ".join(part.task_id for part in parts)}
    metadata = {**metadata, "labels": labels, "annotations": annotations}
    return {**manifest, "metadata": metadata, "spec": {**manifest["spec"], "containers": containers}}


def renew(manifest: Mapping[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Another Pod like one that runs several attempts.

    :param manifest: without what it is to run.
    :param attempt: the first that it is to run.
    """
    token = secrets.token_hex(8)
    metadata = manifest["metadata"]
    labels = {**metadata["labels"], RUN_LABEL: token}
    annotations = {**metadata["annotations"], **attempt_annotations(attempt)}
    metadata = {**metadata, "name": pod_name(attempt, token), "labels": labels, "annotations": annotations}
    return {**manifest, "metadata": metadata}


class Message(NamedTuple):
    """What the termination message tells.

    :param begun: how many attempts have been begun.
    :param exit_code: of the last of them; None if it has not come to an end.
    :param was_signalled: whether the container was told to end while that ran.
    """

    begun: int
    exit_code: int | None = None
    size: int = 0
    ended_at: datetime | None = None
    result: bytes | None = None
    was_signalled: bool = False


def read_message(text: str) -> Message | None:
    """How far a container has come; None if it does not say."""
    line, _, rest = text.partition("\n")
    numbers = line.split()
    if not numbers or len(numbers) > 5 or not all(word.isascii() and word.isdigit() for word in numbers):
        return None
    begun, *end = map(int, numbers)
    if len(end) < 2:
        return Message(begun)
    exit_code, size, *more = end
    result = rest.encode() if 0 < size <= MESSAGE_BYTES else None
    return Message(begun, exit_code, size, _time(more[0]) if more else None, result, was_signalled=more[1:] == [1])


class BundleOutput(Output):
    """The output of a container that runs several attempts.

    :param beginning: what the container prints first.
    :param parts: them, in their order.
    """

    def __init__(self, beginning: bytes, parts: Sequence[Part]) -> None:
        super().__init__(beginning)
        self.parts = list(parts)
        self._by_token = {part.token.encode(): part for part in parts}
        self._pending = b""  # what has come, and is not written yet
        self._current: Part | None = None
        self.begun: int | None = None  # how many have been begun, if no more will be
        self._has_frames = False  # whether one has been seen
        self._has_dropped = False  # what belongs to nobody knows whom
        for part in parts:
            try:
                part.skip = max(0, part.log_path.stat().st_size - part.log_start)
            except OSError:
                part.skip = 0

    def take(self, data: bytes) -> None:
        """Give each what is its own."""
        self._pending += data
        self._count(data)
        self._write()

    def finish(self, *, marker_is_due: bool) -> None:
        """Write what was held back."""
        self._write(is_last=True)

    def note(self, text: bytes) -> None:
        """Say something at this place, if it belongs to an attempt."""
        self._write(is_last=True)
        if self._current is not None:
            append(self._current.log_path, text)

    def cut_off(self, part: Part) -> None:
        """Say that the end of the output of one has not come."""
        if not part.is_cut_off:
            append(part.log_path, CUT_OFF)
            part.is_cut_off = True

    def _write(self, *, is_last: bool = False) -> None:
        """What cannot be written stays pending, and is written with what comes next."""
        while match := _FRAME.search(self._pending):
            part = self._by_token.get(match[1])
            # Without a part, a task says something that looks like a frame.
            self._put(self._pending[: match.end() if part is None else match.start()])
            self._pending = self._pending[match.end() :]
            if part is not None:
                self._has_frames = True
                self._turn(part, match[2], match[3].decode(errors="replace").split())
        kept = 0 if is_last else _unfinished(self._pending)
        self._put(self._pending[: len(self._pending) - kept])
        self._pending = self._pending[len(self._pending) - kept :]

    def _put(self, data: bytes) -> None:
        if self._current is None and data and not self._has_frames:
            self._guess_whose()
        part = self._current
        if part is None:
            self._has_dropped = self._has_dropped or bool(data)
        elif part.result is not None:
            part.result += data
        else:
            append(part.log_path, data[part.skip :])
            part.skip = max(0, part.skip - len(data))

    def _guess_whose(self) -> None:
        """The beginning of the output was thrown away: what runs is likely the first that is not known to have ended.

        That it is taken to run lets its limits of time end it.
        """
        for part in self.parts:
            if part.attempt is not None and not part.is_done:
                append(part.log_path, THROWN_AWAY)
                part.begun_at, part.skip = part.begun_at or _time(None), 0
                self._current = part
                return

    def _turn(self, part: Part, kind: bytes, words: list[str]) -> None:
        """What comes next is of another attempt, or another part of the same."""
        if kind == b"begin":
            part.begun_at = _time(words[0] if words else None)
            self._current, self._has_dropped = part, False
        elif kind == b"spawn":
            what, *names = words or [_COMMAND]
            no_directory = f"the directory {' '.join(names)} (field cwd) does not exist in its Pod"
            no_command = f"command {' '.join(names)} was not found in its Pod"
            part.spawn_error = printable(no_directory if what == _DIRECTORY else no_command)
        elif kind == b"end" and len(words) >= 2 and all(word.isdigit() for word in words):
            lacks_its_beginning = self._current is not part and self._has_dropped
            part.begun_at = part.begun_at or _time(None)
            part.exit_code, part.size = int(words[0]), int(words[1])
            part.was_signalled = words[2:3] == ["1"]
            part.ended_at = _time(words[3] if len(words) > 3 else None)
            part.result = b""
            self._current, self._has_dropped = part, False
            if lacks_its_beginning:
                append(part.log_path, THROWN_AWAY)
        elif kind == b"left":
            self.begun = self.parts.index(part)
            self._current, part.begun_at = None, None
        elif kind == b"done" and part.exit_code is not None:
            part.is_done = True
            self._current = None


def _unfinished(data: bytes) -> int:
    """How many bytes at the end may be the beginning of a frame."""
    place = data.rfind(b"\0")
    if place < 0 or len(data) - place > _LONGEST_FRAME or b"\n" in data[place:]:
        return 0
    found = data[place:]
    return len(found) if found.startswith(_FRAME_BEGINS) or _FRAME_BEGINS.startswith(found) else 0


def _time(seconds: str | int | None) -> datetime:
    """A time of the Pod; now, if it has no program that tells it."""
    try:
        return datetime.fromtimestamp(int(seconds or ""), UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.now(UTC)
