"""What this machine has for its tasks, and what of it they hold: no files, no processes, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.manager_info import Share
from airflow_provider_air_executor.jobs.models import Resources
from airflow_provider_air_executor.jobs.usage import in_bytes


class Amounts(NamedTuple):
    """So much of each resource. Whole numbers, so that what is given and given back comes to nothing."""

    cpus: int = 0  # in thousandths of a processor
    memory: int = 0  # in bytes
    gpus: int = 0

    @classmethod
    def of(cls, resources: Resources | None) -> Amounts | None:
        """What a task asks for; None if it asks for none of these."""
        if resources is None:
            return None
        cpus = 0 if resources.cpus is None else max(1, round(1000 * resources.cpus))
        found = cls(cpus, resources.memory or 0, resources.gpus or 0)
        return found if any(found) else None

    def plus(self, other: Amounts) -> Amounts:
        """Both together."""
        return Amounts(self.cpus + other.cpus, self.memory + other.memory, self.gpus + other.gpus)

    def minus(self, other: Amounts) -> Amounts:
        """What is left; it may be negative."""
        return Amounts(self.cpus - other.cpus, self.memory - other.memory, self.gpus - other.gpus)

    def lacks(self, needed: Amounts) -> Iterator[str]:
        """The resources of which there is less than is needed."""
        for name, there, wanted in zip(self._fields, self, needed, strict=True):
            if wanted and wanted > there:
                yield name


NOTHING = Amounts()


class Holding(NamedTuple):
    """What an attempt holds."""

    amounts: Amounts
    gpus: tuple[str, ...] = ()  # the ids of its own


class Capacity:
    """The resources of this machine, and the attempts that hold some of them.

    More may be held than there is: by attempts of an earlier manager that had more to give.

    :param cpus: processors.
    :param memory: bytes.
    :param gpus: the ids of the graphics processors; None while they are not known.
    """

    def __init__(self, cpus: float, memory: int, gpus: Iterable[str] | None = ()) -> None:
        self.total = Amounts(round(1000 * cpus), memory)  # as far as it is known
        self.free = self.total
        self.free_gpus: tuple[str, ...] = ()  # in their order
        self._gpus: tuple[str, ...] | None = None
        self._held: dict[Attempt, Holding] = {}
        if gpus is not None:
            self.know_gpus(gpus)

    def know_gpus(self, ids: Iterable[str]) -> None:
        """It is known now which graphics processors there are."""
        self._gpus = tuple(dict.fromkeys(ids))
        self.total = self.total._replace(gpus=len(self._gpus))
        self._count()

    def _count(self) -> None:
        """Find out what is free. It may be negative, but of graphics processors: these are counted by their ids."""
        taken = {gpu for holding in self._held.values() for gpu in holding.gpus}
        self.free_gpus = tuple(gpu for gpu in self._gpus or () if gpu not in taken)
        free = self.total
        for holding in self._held.values():
            free = free.minus(holding.amounts)
        self.free = free._replace(gpus=len(self.free_gpus))

    def is_known_for(self, needed: Amounts) -> bool:
        """Whether it is known how much there is of what is needed."""
        return not needed.gpus or self._gpus is not None

    def has(self, needed: Amounts, kept: Amounts = NOTHING) -> bool:
        """Whether so much is free.

        :param kept: what of it is kept for others.
        """
        return self.is_known_for(needed) and not any(self.free.minus(kept).lacks(needed))

    def can_never_have(self, needed: Amounts) -> bool:
        """Whether this machine has less than is needed, whatever else runs; as far as that is known."""
        return self.is_known_for(needed) and any(True for _ in self.total.lacks(needed))

    def take(self, attempt: Attempt, needed: Amounts) -> Holding:
        """Give an attempt what it needs, which must be free."""
        holding = Holding(needed, self.free_gpus[: needed.gpus])
        self.hold(attempt, holding)
        return holding

    def hold(self, attempt: Attempt, holding: Holding) -> None:
        """An attempt holds this, whether or not it is free."""
        self._held[attempt] = holding
        self._count()

    def release(self, attempt: Attempt) -> None:
        """An attempt is over, whether or not it holds something."""
        if self._held and self._held.pop(attempt, None) is not None:
            self._count()

    def held_by(self, attempt: Attempt) -> Holding | None:
        """What an attempt holds."""
        return self._held.get(attempt)

    # -- in words ------------------------------------------------------------------------------------------

    def why_never(self, needed: Amounts) -> str:
        """Why this machine can never give what is needed; empty if it can."""
        for name in self.total.lacks(needed) if self.is_known_for(needed) else ():
            unit = 1000 if name == "cpus" else 1
            what = "bytes of memory" if name == "memory" else name
            wanted, there = getattr(needed, name) / unit, getattr(self.total, name) / unit
            return f"it needs {wanted:.12g} {what}; this machine has {there:.12g} for local tasks"
        return ""

    def why_waits(self, needed: Amounts) -> str:
        """What somebody waits for who needs so much."""
        if not self.is_known_for(needed):
            return f"waits for {_amount('gpus', needed.gpus)} (it is being found out which there are)"
        lacking = list(self.free.lacks(needed))
        parts = [
            f"{_amount(name, getattr(needed, name))} ({self._how_many_are_free(name)})"
            for name in lacking or [name for name in needed._fields if getattr(needed, name)]
        ]
        return f"waits for {' and '.join(parts)}{'' if lacking else ', which are kept for a task before it'}"

    def _how_many_are_free(self, name: str) -> str:
        free, total = max(0, getattr(self.free, name)), getattr(self.total, name)
        if name == "memory":
            return f"{in_bytes(free)} of {in_bytes(total)} are free"
        unit = 1000 if name == "cpus" else 1
        return f"{free / unit:g} of {total / unit:g} {'is' if free == unit else 'are'} free"

    def shares(self) -> dict[str, Share]:
        """How much of each resource is held, and how much there is, as far as it is known."""
        found = {
            "cpus": Share((self.total.cpus - self.free.cpus) / 1000, self.total.cpus / 1000),
            "memory": Share(self.total.memory - self.free.memory, self.total.memory),
        }
        if self._gpus is not None:
            found["gpus"] = Share(self.total.gpus - self.free.gpus, self.total.gpus, self.free_gpus)
        return found


def _amount(name: str, number: int) -> str:
    if name == "memory":
        return f"{in_bytes(number)} of memory"
    unit = 1000 if name == "cpus" else 1
    return f"{number / unit:g} {name.removesuffix('s') if number == unit else name}"
