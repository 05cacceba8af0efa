"""Describes validation errors of a record, in a sentence that names each field."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from airflow_provider_air_executor.exceptions import InvalidJobError

SHOWN = 20  # fields that are not valid, or tasks that wait for each other


def validate(adapter: TypeAdapter[Any], data: Any, where: str) -> Any:
    """Validate ``data`` as a record, or a list of records.

    :param where: what the data is, the beginning of the path in the error: ``tasks`` gives ``tasks[0].args[1]``.
    :raises InvalidJobError: naming each field that is not valid.
    """
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise InvalidJobError(describe_validation_error(error, where)) from None


def describe_validation_error(error: ValidationError, where: str) -> str:
    """One line that names every field that is not valid, and what is wrong with it.

    Values are not shown, since a field may hold a secret.
    """
    problems = []
    found = error.errors(include_url=False, include_input=False, include_context=False)
    for item in found[:SHOWN]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
        problems.append(f"{(where + path).lstrip('.')}: {item['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(problems) + more
