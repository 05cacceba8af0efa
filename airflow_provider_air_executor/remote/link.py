"""What is asked of a server, in one line each: answers of JSON, and of lines of JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from airflow_provider_air_executor.remote import records
from airflow_provider_air_executor.remote.connections import Answer
from airflow_provider_air_executor.remote.transport import Ask, Transport

T = TypeVar("T")

_JSON = {"Content-Type": "application/json"}


class Link:
    """Asks a server.

    :param patience: seconds for which it is asked again while it is away; 0: it is asked once; None: without end.
    """

    def __init__(self, transport: Transport, patience: float | None) -> None:
        self.transport = transport
        self.patience = patience

    @property
    def where(self) -> str:
        """The server, for people."""
        return self.transport.target.where

    def get(self, path: str, **params: Any) -> Any:
        """An answer of JSON."""
        return self._ask(Ask("GET", path, params=_given(params)))

    def send(self, method: str, path: str, content: Any, **params: Any) -> Any:
        """Send a value, and get an answer of JSON; None if there is nothing to say."""
        return self._ask(_with_body(method, path, content, params))

    def lines(self, path: str, keep: Callable[[Any], T], **params: Any) -> list[T]:
        """An answer of lines of JSON.

        :param keep: makes of the value of a line what is kept.
        """
        return self._lines(Ask("GET", path, params=_given(params)), keep)

    def lines_for(self, path: str, content: Any, keep: Callable[[Any], T]) -> list[T]:
        """Send a value, and get an answer of lines of JSON; see :meth:`lines`."""
        return self._lines(_with_body("POST", path, content, {}), keep)

    def read(self, path: str, **params: Any) -> Answer:
        """An answer, read."""
        return self.transport.request(Ask("GET", path, params=_given(params)), _read, patience=self.patience)

    def delete(self, path: str, **params: Any) -> None:
        """Remove something."""
        self._ask(Ask("DELETE", path, params=_given(params)))

    def _ask(self, ask: Ask) -> Any:
        answer = self.transport.request(ask, _read, patience=self.patience)
        return records.parsed_json(answer.content) if answer.content else None

    def _lines(self, ask: Ask, keep: Callable[[Any], T]) -> list[T]:
        def read(answer: Answer) -> list[T]:
            return [keep(records.parsed_json(line)) for line in split_lines(answer.pieces())]

        return self.transport.request(ask, read, patience=self.patience)


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of what comes in pieces; a newline ends one, and nothing else does. Empty ones are left out."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, lines)
    if rest:
        yield rest


def _read(answer: Answer) -> Answer:
    _ = answer.content
    return answer


def _with_body(method: str, path: str, content: Any, params: Mapping[str, Any]) -> Ask:
    return Ask(method, path, params=_given(params), content=records.dumped(content), headers=_JSON)


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
