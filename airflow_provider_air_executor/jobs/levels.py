"""The level of a line that a task has printed, as far as the line says so."""

from __future__ import annotations

import json
import logging
import re

_LEVELS = {
    logging.DEBUG: "TRACE DEBUG VERBOSE FINE FINER FINEST DBG",
    logging.INFO: "INFO NOTICE INFORMATION INF",
    logging.WARNING: "WARN WARNING WRN",
    logging.ERROR: "ERROR ERR SEVERE",
    logging.CRITICAL: "CRITICAL FATAL CRIT ALERT EMERG EMERGENCY PANIC",
}
_BY_WORD = {word: level for level, words in _LEVELS.items() for word in words.split()}
_KEYS = ("level", "severity", "levelname", "log.level", "loglevel", "lvl", "levelno")
_LONGEST = 16_384  # characters of a line of JSON that is read
_BEGINNING = 200  # characters in which the level must be

_WORDS = "|".join(sorted(_BY_WORD, key=len, reverse=True))
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What may stand before it: a time, names and numbers in brackets, and what a program puts between them.
_BEFORE = re.compile(
    r"(?:\[[^\]]{0,80}\]|\{[^}]{0,80}\}|\([^)]{0,80}\)|[\d:.,TZ/+-]+|[A-Z][a-z]{2}(?= {1,2}\d)|[\s|-])*"
)
_WORD = re.compile(rf"[\[(<]?({_WORDS})(?=[\s:\]|)>,]|$)")
# In small letters a word must be marked as a level: "error: ...", "[warning]"; in a sentence it is none.
_MARKED = re.compile(rf"(?:[\[(<]({_WORDS})[\])>]|({_WORDS}):(?:\s|$))", re.IGNORECASE)
_IN_BRACKETS = re.compile(rf"\[({_WORDS})\]", re.IGNORECASE)
_AFTER_NAME = re.compile(rf"[\w.\[\]-]+(?:\s*[-:|]\s*|\s+)[\[(]?({_WORDS})(?=[\s:\]|)]|$)")
_AS_FIELD = re.compile(rf"\b(?:level|lvl|severity)=\"?({_WORDS})\b", re.IGNORECASE)
_TRACEBACK = "Traceback (most recent call last):"


def level_of(line: str) -> int:
    """The level of a line, as a number of :mod:`logging`; INFO if the line does not say.

    It says so by a word in capitals at its beginning, or after a time or brackets (``[12:00:01] ERROR``), by a word
    that is marked as a level (``warning: ...``, ``[error]``, ``level=error``), or as JSON with a field ``level`` or
    ``severity``.
    """
    line = _COLOURS.sub("", line[:_LONGEST]).lstrip()
    if line.startswith("{"):
        found = _in_json(line)
        if found is not None:
            return found
    beginning = line[:_BEGINNING]
    if beginning.startswith(_TRACEBACK):
        return logging.ERROR
    word = _word_of(beginning)
    return _BY_WORD[word.upper()] if word else logging.INFO


def _word_of(line: str) -> str:
    """The word for the level in the beginning of a line; empty if there is none."""
    before = _BEFORE.match(line)
    end = before.end() if before else 0
    found = (
        _WORD.match(line)
        or _MARKED.match(line)
        or _IN_BRACKETS.search(line, 0, end)
        or (end and (_WORD.match(line, end) or _AFTER_NAME.match(line, end) or _MARKED.match(line, end)))
        or _AS_FIELD.search(line)
    )
    return next(filter(None, found.groups())) if found else ""


def _in_json(line: str) -> int | None:
    """The level that a line of JSON has; None if it is not JSON, or has none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    value = next((found[key] for key in _KEYS if key in found), None)
    if isinstance(value, str):
        return _BY_WORD.get(value.upper())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # In ``level``, pino and bunyan have 30 for INFO; Python has 20, in ``levelno``.
    return _of_number(value if "levelno" in found else value - 10)


def _of_number(value: float) -> int:
    return next((level for level in sorted(_LEVELS, reverse=True) if value >= level), logging.DEBUG)
