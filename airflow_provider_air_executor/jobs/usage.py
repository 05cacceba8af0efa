"""What an attempt of a task has used of its machine."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Usage(BaseModel):
    """What an attempt has used, with all the processes that it has waited for.

    :param cpu_seconds: processor time, of users and of the system together.
    :param max_memory: the most memory in bytes that one of its processes had at a time; None: that is not known. Of a
        process that the manager itself has started, it is known only if it is more than the manager has ever had.
    """

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    cpu_seconds: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    max_memory: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None


def in_bytes(number: float) -> str:
    """So many bytes, for people: ``1.2 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} GiB"
