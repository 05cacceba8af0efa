"""The arguments of operators, sensors and notifiers: checked when the DAG is parsed, and taken as rendered."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import spec
from airflow_provider_air_executor.jobs.models import Seconds
from airflow_provider_air_executor.jobs.validation import validate
from airflow_provider_air_executor.task_templates import from_json, is_unknown

_EMPTY = ("", "None")  # what a template gives for nothing
_NOT_GIVEN: tuple[Any, ...] = (None, "", {}, [])
_SECONDS = TypeAdapter(Seconds, config=ConfigDict(defer_build=True))


def seconds(name: str, given: Any) -> Any:
    """A duration in seconds: given as a number, a timedelta, or a text such as ``"15m"``.

    :return: None if none is given; a template, or the output of another task, stays as it is.
    :raises InvalidJobError: naming the argument.
    """
    if is_unknown(given) or given is None or given in _EMPTY:
        return given if is_unknown(given) else None
    try:
        return validate(_SECONDS, given, name)
    except InvalidJobError:
        raise InvalidJobError(
            f"{name}: must be a number of seconds greater than 0, a text such as '15m', or a timedelta, not {given!r}"
        ) from None


def known_seconds(name: str, given: Any) -> float:
    """The same, of an argument that cannot be a template.

    :raises InvalidJobError: naming the argument.
    """
    found = seconds(name, given)
    if not isinstance(found, float):
        raise InvalidJobError(f"{name}: must be a duration, and no template, not {given!r}")
    return found


def whole_number(name: str, given: Any, *, least: int | None = None, is_rendered: bool = False) -> Any:
    """A whole number.

    :param least: how large it must be.
    :param is_rendered: whether it may be a text, which a template has given.
    :return: as :func:`seconds`.
    :raises InvalidJobError: naming the argument.
    """
    if is_unknown(given) or given is None or given in _EMPTY:
        return given if is_unknown(given) else None
    number = given
    if is_rendered and isinstance(given, str):
        with contextlib.suppress(ValueError):
            number = int(given)
    if isinstance(number, bool) or not isinstance(number, int) or (least is not None and number < least):
        at_least = "" if least is None else f" from {least}"
        raise InvalidJobError(f"{name}: must be a whole number{at_least}, not {given!r}")
    return number


def labels(given: Any) -> Any:
    """Labels: texts by their names; each of them, or all together, may be known later only.

    :raises InvalidJobError: naming the label.
    """
    if given is None or is_unknown(given):
        return given
    if not isinstance(given, Mapping):
        raise InvalidJobError(f"labels: must be a dict of texts, not {type(given).__name__}")
    for key, value in given.items():
        if not isinstance(key, str) or not (isinstance(value, str) or is_unknown(value)):
            raise InvalidJobError(f"labels: each is a text with a text, not {key!r}: {value!r}; say {str(value)!r}")
    return given


def job_timeout(given: Any, more: float) -> Any:
    """Seconds after which the manager itself kills a job, in case that no Airflow task waits for it any more.

    :param given: the timeout of the Airflow task.
    :param more: by how much it is longer than that.
    """
    limit = seconds("timeout", given)
    return limit if limit is None or is_unknown(limit) else limit + more


def job_spec(given: Mapping[str, Any], more: Mapping[str, Any]) -> spec.JobSpec:
    """The spec of a job, with the values of templates that have been rendered.

    :param given: its fields, as an operator has them; None: it does not say.
    :param more: fields for those that it does not say.
    :raises InvalidJobError: naming the field that is not valid.
    """
    fields: dict[str, Any] = {**more, **{name: value for name, value in given.items() if value not in _NOT_GIVEN}}
    fields["outlets"] = list(dict.fromkeys([*listed("outlets", more.get("outlets")), *given["outlets"]]))
    fields["max_parallel_tasks"] = whole_number(
        "max_parallel_tasks", fields.get("max_parallel_tasks"), least=1, is_rendered=True
    )
    fields["priority"] = whole_number("priority", fields.get("priority"), is_rendered=True) or 0
    fields["timeout"] = seconds("timeout", fields.get("timeout"))
    found = fields["labels"] = from_json("labels", fields.get("labels"), dict)
    if isinstance(found, Mapping):
        fields["labels"] = {
            key: str(value) if isinstance(value, int | float) else value for key, value in found.items()
        }
    return cast("spec.JobSpec", {name: fields.get(name) for name in spec.FIELDS})


def listed(name: str, given: Any) -> list[Any]:
    """A list, also one that a template has given as JSON, or a single text.

    :raises InvalidJobError: naming the argument.
    """
    found = from_json(name, given, list)
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]


def exit_codes(given: Any) -> set[int]:
    """The exit codes that skip a task: one, several, or none.

    :raises InvalidJobError: if one is no number; a text would be taken for its digits.
    """
    codes: list[Any] = [] if given is None else [given] if isinstance(given, int | str) else list(given)
    for code in codes:
        if isinstance(code, bool) or not isinstance(code, int):
            raise InvalidJobError(f"skip_on_exit_code: must be a number, or several, not {given!r}")
    return set(codes)


def word(name: str, given: Any, known: Sequence[str]) -> None:
    """Check that an argument is one of some words.

    :raises InvalidJobError: naming them.
    """
    if given not in known:
        raise InvalidJobError(f"{name}: must be one of {', '.join(known)}, not {given!r}")
