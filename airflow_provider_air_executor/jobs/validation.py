"""Describes validation errors of a record, in a sentence that names each field."""

from __future__ import annotations

import re
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
        problems.append(f"{(where + path).lstrip('.')}: {_said(item['type'], item['msg'])}")
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(problems) + more


# What pydantic says in the words of its classes, by the type of the error.
_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "string_too_short": "must not be empty",
    **dict.fromkeys(("string_type", "string_sub_type"), "must be a text"),
    **dict.fromkeys(("tuple_type", "list_type", "iterable_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "must be a mapping"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
}


def _said(kind: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    return _WORDS.get(kind) or re.sub(r"^(Input|String|Value) should ", "must ", message)
