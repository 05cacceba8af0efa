"""Which packages are worth importing ahead: a pure choice between time and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

LEAST_CPU_SECONDS = 0.005  # that its import takes, without what it needs: a package with many of them adds up
LEAST_TASKS = 3
_LEAST_BYTES = 1 << 20  # what counts as the memory of a package that takes nearly none
_HELD = 1.25  # how much more a package is worth that is there already: a close decision is not taken again and again


@dataclass(frozen=True)
class Candidate:
    """A package that may be imported ahead.

    :param tasks: how many tasks import it in a day.
    :param cpu_seconds: what importing it takes, after those that it needs.
    :param memory: bytes, likewise.
    :param needs: other packages that are imported with it.
    """

    root: str
    tasks: float
    cpu_seconds: float
    memory: int
    needs: tuple[str, ...] = ()

    @property
    def is_worth_while(self) -> bool:
        """Whether it takes long enough to be imported ahead for its own sake."""
        return self.cpu_seconds >= LEAST_CPU_SECONDS


def choose(candidates: Mapping[str, Candidate], cap: int, held: Collection[str] = ()) -> tuple[str, ...]:
    """The packages to import ahead, each after those that it needs.

    The same candidates always give the same choice: the best value for the memory comes first.

    :param candidates: by their names.
    :param cap: bytes that they may take together.
    :param held: what has been imported ahead already.
    """
    chosen: dict[str, None] = {}
    left = cap
    worthy = [one for one in candidates.values() if one.is_worth_while and one.tasks > 0]
    for candidate in sorted(worthy, key=lambda one: (-_density(one, held), one.root)):
        group = [one for one in _with_needs(candidate, candidates, set()) if one.root not in chosen]
        memory = sum(one.memory for one in group)
        if memory <= left:
            left -= memory
            chosen.update(dict.fromkeys(one.root for one in group))
    return tuple(root for root in chosen if candidates[root].is_worth_while)


def _density(candidate: Candidate, held: Collection[str]) -> float:
    """Seconds saved in a day for each byte."""
    factor = _HELD if candidate.root in held else 1.0
    return factor * candidate.cpu_seconds * candidate.tasks / max(candidate.memory, _LEAST_BYTES)


def _with_needs(candidate: Candidate, candidates: Mapping[str, Candidate], seen: set[str]) -> Iterator[Candidate]:
    """A package after all that it needs."""
    seen.add(candidate.root)
    for need in candidate.needs:
        if need in candidates and need not in seen:
            yield from _with_needs(candidates[need], candidates, seen)
    yield candidate
