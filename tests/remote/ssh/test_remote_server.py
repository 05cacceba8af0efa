"""The command line for the other machine, and what it answers."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import SettingsError, SshError
from airflow_provider_air_executor.remote.ssh.remote_server import Server, Started, command_line, read_answer

ANSWER = '{"socket": "/b/server.sock", "version": "1.2", "protocol": 1}'


def read(output: str, *, code: int | None = 0, errors: str = "") -> Server:
    return read_answer(Started(code, output, errors), host="h", command="air-executor")


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_a_base_path_is_one_word(base_path: str) -> None:
    """Whatever it holds, a shell there hands it on as it is."""
    line = command_line("air-executor", "--ensure", base_path=base_path, embedded=True)
    words = ["air-executor", "serve", "--ensure", "--base-path", base_path, "--embedded"]
    if base_path.startswith("~/"):
        assert f"--base-path ~/{shlex.quote(base_path[2:])}" in line
    else:
        assert shlex.split(line) == words


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("air-executor", "air-executor serve --ensure"),
        ("~/air-executor.pyz", "~/air-executor.pyz serve --ensure"),
        ("'~/my programs/ae' -x", "~/'my programs/ae' -x serve --ensure"),
        ("python3.12 '/opt/a b.pyz'", "python3.12 '/opt/a b.pyz' serve --ensure"),
        ("a; rm -rf $HOME", "'a;' rm -rf '$HOME' serve --ensure"),
    ],
)
def test_a_command_may_have_arguments(command: str, line: str) -> None:
    assert command_line(command, "--ensure", base_path=None, embedded=False) == line


def test_a_command_that_is_none() -> None:
    with pytest.raises(SettingsError, match="is not one"):
        command_line("'air-executor", base_path=None, embedded=False)


@pytest.mark.parametrize("around", ["{}", "hello\n{}\n", "{}\nbye", '{{}}\n[1]\n{}\n{{"socket": 1}}\nnull'])
def test_the_line_is_found_among_what_a_shell_prints(around: str) -> None:
    assert read(around.format(ANSWER)) == Server("/b/server.sock", "1.2")


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (127, "sh: 1: air-executor: not found", "h has no command 'air-executor' (sh: 1: air-executor: not found)"),
        (2, "Error: No such option: --ensure", "air-executor on h is too old for this"),
        (1, "air-executor: no space", "has ended with exit code 1 on h: no space"),
        (1, "x\nModuleNotFoundError: No module named 'tomllib'", "It needs Python 3.11 or newer"),
        (None, "", "has ended with a signal on h: it has printed nothing"),
    ],
)
def test_what_has_failed(code: int | None, errors: str, expected: str) -> None:
    with pytest.raises(SshError) as error:
        read("", code=code, errors=errors)
    assert expected in str(error.value)


def test_long_output_is_cut() -> None:
    with pytest.raises(SshError) as error:
        read("x" * 10_000)
    assert len(str(error.value)) < 1000
