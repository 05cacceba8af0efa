"""What an attempt of a task has used of its machine."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from airflow_provider_air_executor.jobs.attempt_record import Record

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Usage(BaseModel):
    """What an attempt has used, with all the processes that it has waited for.

    :param cpu_seconds: processor time, of users and of the system together.
    :param max_memory: the most memory in bytes at a time; None: that is not known. It is that of the largest of its
        processes, or of all of them where they are in a control group of their own, or were killed for their memory. Of
        a process that the manager itself has started, it is known only if it is more than the manager has ever had.
    """

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    cpu_seconds: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    max_memory: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None


def usage_of(record: Record | None) -> Usage | None:
    """What an attempt has used according to its record, if that says so."""
    used = record.used if record is not None else None
    return None if used is None else Usage(cpu_seconds=used.cpu_seconds, max_memory=used.max_memory)


def in_bytes(number: float) -> str:
    """So many bytes, for people: ``1.2 GiB``."""
    unit = next((unit for unit in _UNITS if number < _UNITS[unit] * 1024), "TiB")
    return f"{number / _UNITS[unit]:.1f}".removesuffix(".0") + f" {unit}"
