"""Lists of tasks read and written in pieces: a ``tasks.json``, and what is asked of the manager."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from airflow_provider_air_executor.exceptions import InvalidJobError, why_unreadable
from airflow_provider_air_executor.jobs.models import TASK_LIST, Task
from airflow_provider_air_executor.jobs.pieces import Pieces
from airflow_provider_air_executor.jobs.validation import describe_validation_error

AT_ONCE = 400_000  # bytes of a file that are parsed without doing something else in between
LONGEST_NEW = 1_000_000  # bytes of a new task, or a new state.json; they get longer when they have failed
LONGEST = 4_000_000  # characters of one task; Linux starts no command of half that length
_MOST = 16_384  # that nearly all tasks are shorter than
_PIECE = 50_000  # bytes, or characters
_AT_A_TIME = 20  # tasks
_TASK = TypeAdapter(Task)
_SPACE = re.compile(r"[ \t\n\r]*")
_PARSE = json.JSONDecoder().raw_decode


def is_short(data: list[bytes]) -> bool:
    """Whether what a file holds is parsed at once."""
    return len(data) == 1 and len(data[0]) <= AT_ONCE


def parsing(data: list[bytes]) -> Pieces[list[Task]]:
    """The tasks of a ``tasks.json``.

    :param data: what is in the file, in pieces.
    :raises InvalidJobError: if it is not a list of tasks; naming the position.
    """
    if is_short(data):
        try:
            found = list(TASK_LIST.validate_json(data[0]))
        except ValidationError as error:
            raise InvalidJobError(describe_validation_error(error, "tasks")) from None
        for position, task in enumerate(found):
            _check_id(task, position)
            task.share_fields()
        return found
    try:
        text = _Text(data)
        tasks = yield from _parsing_tasks(text)
        text.end()
    except (ValueError, RecursionError) as error:
        raise InvalidJobError(f"tasks: {why_unreadable(error)}") from None
    return tasks


def parsing_object(data: list[bytes]) -> Pieces[dict[str, Any]]:
    """The members of an object that may have a member ``tasks``, which is a list of tasks.

    :param data: what is in the file, in pieces.
    :raises InvalidJobError: if it is no such object; naming the position.
    """
    found: dict[str, Any] = {}
    try:
        text = _Text(data)
        for name in text.members():
            found[name] = (yield from _parsing_tasks(text)) if name == "tasks" else text.value()
        text.end()
    except (ValueError, RecursionError) as error:
        raise InvalidJobError(why_unreadable(error)) from None
    return found


class Totals(NamedTuple):
    """What a list of tasks comes to."""

    tasks: int
    cpu_seconds: float | None  # of all their latest attempts; None: of none of them it is known
    max_memory: int | None  # bytes, the most that one of them had


def totals(data: list[bytes]) -> Totals:
    """How many items a list has, and what they have used. Other threads can run meanwhile, however long it is.

    :param data: what is in the file, in pieces.
    :raises ValueError: if it is not a list.
    :raises RecursionError: if it is nested too deep.
    """
    text, number = _Text(data), 0
    seconds: list[float] = []
    memory: list[int] = []
    for item in text.items():
        number += 1
        usage = item.get("usage") if isinstance(item, dict) else None
        if isinstance(usage, dict):
            seconds += [used for used in [usage.get("cpu_seconds")] if isinstance(used, int | float)]
            memory += [most for most in [usage.get("max_memory")] if isinstance(most, int)]
    text.end()
    return Totals(number, round(sum(seconds), 3) if seconds else None, max(memory, default=None))


def _parsing_tasks(text: _Text) -> Pieces[list[Task]]:
    tasks: list[Task] = []
    done = text.position
    for item in text.items():
        try:
            tasks.append(_TASK.validate_python(item))
        except ValidationError as error:
            raise InvalidJobError(describe_validation_error(error, f"tasks[{len(tasks)}]")) from None
        _check_id(tasks[-1], len(tasks) - 1)
        tasks[-1].share_fields()
        if text.position - done > _PIECE:
            done = text.position
            yield False
    return tasks


def _check_id(task: Task, position: int) -> None:
    if not task.id:
        raise InvalidJobError(f"tasks[{position}].id: is missing")


class _Text:
    """JSON that is read from its beginning to its end.

    All methods raise :class:`ValueError` or :class:`RecursionError` if it is not what it should be.

    :param data: its bytes, in pieces.
    """

    def __init__(self, data: list[bytes]) -> None:
        self._rest = iter(data)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""  # what has been decoded, from the next on that is to be read
        self._at = 0
        self._before = 0  # characters
        self._pass_space()

    @property
    def position(self) -> int:
        """How many characters have been read."""
        return self._before + self._at

    def items(self) -> Iterator[Any]:
        """The items of the list that is next."""
        self._expect("[")
        if self._take("]"):
            return
        while True:
            yield self.value()
            if not self._take(","):
                break
        self._expect("]")

    def members(self) -> Iterator[str]:
        """The names in the object that is next; after each, the value must be taken."""
        self._expect("{")
        if self._take("}"):
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                raise ValueError(f"there is no name before character {self.position}")
            self._expect(":")
            yield name
            if not self._take(","):
                break
        self._expect("}")

    def value(self) -> Any:
        """The value that is next."""
        for size in (_MOST, LONGEST):
            while len(self._text) - self._at < size and self._has_more():
                pass
            part = self._text[self._at : self._at + size]
            try:
                found, end = _PARSE(part)
            except json.JSONDecodeError as error:
                if len(part) < size:
                    raise ValueError(f"{error.msg} at character {self.position + error.pos}") from None
                continue
            if end < size:
                self._at += end
                self._pass_space()
                return found
        raise ValueError(f"what begins at character {self.position} is no JSON, or longer than {LONGEST} characters")

    def end(self) -> None:
        """Nothing may be left."""
        if self._at < len(self._text) or self._has_more():
            raise ValueError(f"there is something after the end, at character {self.position}")

    def _has_more(self) -> bool:
        """Decode the next piece, if there is one."""
        data = next(self._rest, None)
        self._before += self._at
        self._text = self._text[self._at :] + self._decoder.decode(data or b"", final=data is None)
        self._at = 0
        return data is not None

    def _take(self, sign: str) -> bool:
        if not self._text.startswith(sign, self._at):
            return False
        self._at += 1
        self._pass_space()
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise ValueError(f"{sign!r} is missing at character {self.position}")

    def _pass_space(self) -> None:
        """Go on to the next sign, if there is one."""
        while True:
            if found := _SPACE.match(self._text, self._at):
                self._at = found.end()
            if self._at < len(self._text) or not self._has_more():
                return


def dumping(tasks: Iterable[Task]) -> Iterator[bytes]:
    """The bytes of a ``tasks.json``, piece by piece."""
    rest = iter(tasks)
    piece = bytearray(b"[")
    is_first = True
    while some := tuple(itertools.islice(rest, _AT_A_TIME)):
        if not is_first:
            piece += b","
        is_first = False
        piece += TASK_LIST.dump_json(some, indent=2)[1:-2]
        if len(piece) > _PIECE:
            yield bytes(piece)
            piece.clear()
    piece += b"]\n" if is_first else b"\n]\n"
    yield bytes(piece)


def check_lengths(tasks: Sequence[Task], written: bytes) -> None:
    """Refuse new tasks that are too long for readers.

    :param written: the bytes of all of them together.
    :raises InvalidJobError: naming the task.
    """
    if len(written) <= LONGEST_NEW:
        return
    for index, task in enumerate(tasks):
        if len(b"".join(dumping([task]))) > LONGEST_NEW:
            raise InvalidJobError(
                f"tasks[{index}]: it is longer than {LONGEST_NEW} bytes; write what is long to a file"
            )
