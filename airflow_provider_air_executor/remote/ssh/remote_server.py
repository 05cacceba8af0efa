"""The command that starts the server on the other machine, and what it prints there."""

from __future__ import annotations

import json
import shlex
from typing import Any, NamedTuple

from airflow_provider_air_executor.exceptions import SettingsError, SshError

_NOT_FOUND = (126, 127)  # exit codes of shells
_SHOWN = 600  # characters of what the other machine has printed


class Server(NamedTuple):
    """The server on the other machine.

    :param socket: the path of its Unix socket there.
    :param version: of Air-Executor there; empty if it is not said.
    """

    socket: str
    version: str


class Started(NamedTuple):
    """How the command has ended, and what it has printed.

    :param code: its exit code; None if a signal has ended it.
    """

    code: int | None
    output: str
    errors: str


def command_line(command: str, *options: str, base_path: str | None, embedded: bool) -> str:
    """A command line of ``air-executor serve`` for the shell of the other machine.

    :param command: ``air-executor`` there; ``~/`` at its beginning is the home directory there.
    :raises SettingsError: if the command has a quote that does not end.
    """
    more = ["--base-path", base_path] if base_path is not None else []
    words = [*_words(command), "serve", *options, *more, *(["--embedded"] if embedded else [])]
    return " ".join(map(_quoted, words))


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise SettingsError(f"the command {command!r} is not one: {error}") from None


def _quoted(word: str) -> str:
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)


def read_answer(started: Started, *, host: str, command: str) -> Server:
    """What ``air-executor serve --ensure`` says.

    The login shell may have printed something as well.

    :raises SshError: if there is no such command, it has failed, or it prints something else.
    """
    if started.code != 0:
        raise SshError(_why_failed(started, host=host, command=command))
    for line in reversed(started.output.splitlines()):
        found = _server(line)
        if found is not None:
            return found
    printed = _end_of(started.output) or _end_of(started.errors) or "nothing"
    raise SshError(
        f"`{command} serve --ensure` on {host} does not say where its server is; it has printed: {printed}. "
        "Is that command air-executor?"
    )


def _server(line: str) -> Server | None:
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("socket"), str):
        return None
    return Server(found["socket"], str(found.get("version", "")))


def _why_failed(started: Started, *, host: str, command: str) -> str:
    said = _end_of(started.errors) or _end_of(started.output)
    if started.code in _NOT_FOUND:
        return (
            f"{host} has no command {command!r} ({said}). Install air-executor there, or name its path: the `command` "
            "of the connection, or --ssh-command. A shell that SSH starts reads another profile than a login"
        )
    if "No such command 'serve'" in said or "No such option" in said:
        return f"air-executor on {host} is too old for this ({said}); install the version there that is used here"
    how = "a signal" if started.code is None else f"exit code {started.code}"
    hint = ". It needs Python 3.11 or newer" if _looks_too_old(said) else ""
    return f"`{command} serve --ensure` has ended with {how} on {host}: {said or 'it has printed nothing'}{hint}"


def _looks_too_old(said: str) -> bool:
    return any(word in said for word in ("SyntaxError", "ModuleNotFoundError", "ImportError"))


def _end_of(text: str) -> str:
    """The last lines of a text, in one."""
    return " ".join(text.strip().splitlines()[-5:]).removeprefix("air-executor: ")[-_SHOWN:]
