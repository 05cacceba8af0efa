"""Work that takes long if there is much to do, in pieces: a single thread can do something else in between.

Such work is a generator that stops after each piece and returns its result at the end. It says whether there is nothing
to do for it at the moment, since it waits for the disk. :func:`finish` does all of it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")
Pieces = Generator[bool, None, T]

ITEMS = 200  # of which a piece takes some milliseconds at most


def finish(pieces: Pieces[T]) -> T:
    """Do all of it now."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def dropping(container: list[Any] | dict[Any, Any]) -> Pieces[None]:
    """Empty a list or dict: freeing very many objects takes nearly as long as making them."""
    take = container.popitem if isinstance(container, dict) else container.pop
    number = 0
    while container:
        take()
        number += 1
        if not number % ITEMS:
            yield False
