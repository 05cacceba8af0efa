"""The executor and its settings as Airflow knows them, and ``airflow air-executor``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from airflow.cli.cli_config import ActionCommand, GroupCommand

from airflow_provider_air_executor import cli, get_provider_info
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.remote_manager import RemoteManager
from tests.support.waiting import PATIENCE

EXECUTOR = "airflow_provider_air_executor.executor.AirExecutorExecutor"
DEFAULTS = {
    "base_path": "",
    "embedded": "True",
    "capacity": "",
    "max_running_tasks": "",
    "queues": "{}",
    "preload": "auto",
    "execute_ahead": "True",
    "kill_grace": "5",
    "prune_after": "3600",
    "stream_limit": "10000000",
    "keep_secrets": "False",
    "embedded_idle_timeout": "600",
}


def airflow(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AIR_EXECUTOR_")}
    return subprocess.run(
        [sys.executable, "-m", "airflow", *arguments],
        env={**environment, "AIRFLOW_HOME": str(home), "COLUMNS": "300"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the click commands are called with, in place of being called."""
    found: list[list[str]] = []
    monkeypatch.setattr(cli.main, "main", lambda arguments, **_: found.append(arguments))
    return found


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The commands take away the handlers of the root logger."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    root.handlers[:] = before


def subcommands() -> dict[str, ActionCommand]:
    (group,) = cli.get_cli_commands()
    assert isinstance(group, GroupCommand)
    assert group.name == "air-executor"
    return {command.name: command for command in group.subcommands}


def parser_of(command: ActionCommand) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(command.name, description=command.description)
    for arg in command.args:
        arg.add_to_parser(parser)
    return parser


def run(command: ActionCommand, *arguments: str) -> None:
    command.func(parser_of(command).parse_args(arguments))


# -- the provider info -------------------------------------------------------------------------------------


def test_airflow_finds_executor_and_commands() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert EXECUTOR in manager.executor_class_names
    assert cli.get_cli_commands in manager.cli_command_functions


def test_each_option_is_described() -> None:
    options = get_provider_info()["config"]["air_executor"]["options"]
    assert options.keys() == DEFAULTS.keys()
    for option in options.values():
        assert option["description"]
        assert option["version_added"] == "0.1.0"
        assert isinstance(option["default"], str)


@pytest.mark.airflow
def test_airflow_lists_each_option_with_its_default(tmp_path: Path) -> None:
    listed = airflow("config", "list", "--section", "air_executor", "--show-values", home=tmp_path)
    assert listed.returncode == 0
    lines = [line.partition("=") for line in listed.stdout.splitlines() if "=" in line]
    assert {name.strip(): value.strip() for name, _, value in lines} == DEFAULTS


def test_the_defaults_are_valid_values() -> None:
    from airflow.configuration import conf

    assert conf.get("air_executor", "base_path") == ""
    assert conf.getboolean("air_executor", "embedded") is True
    assert conf.getjson("air_executor", "queues") == {}
    assert conf.getfloat("air_executor", "kill_grace") == 5
    assert conf.getfloat("air_executor", "prune_after") == 3600


# -- the commands ------------------------------------------------------------------------------------------


def test_every_command_is_there_with_all_its_options() -> None:
    commands = subcommands()
    assert commands.keys() == cli.main.commands.keys()
    assert {"manager", "stop", "submit", "status", "logs", "cancel", "retry", "prune"} <= commands.keys()
    for name, command in cli.main.commands.items():
        assert commands[name].help
        flags = [set(arg.flags) for arg in commands[name].args]
        for parameter in command.params:
            expected = {*parameter.opts, *parameter.secondary_opts}
            assert expected in flags, (name, parameter.name)
        text = " ".join(parser_of(commands[name]).format_help().split())
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name != "base_path" and not parameter.hidden:
                assert " ".join(str(parameter.help).split()) in text


@pytest.mark.parametrize("name", list(cli.main.commands))
def test_click_gets_what_was_given(name: str, calls: list[list[str]]) -> None:
    options, arguments = [], []
    for parameter in cli.main.commands[name].params:
        if not isinstance(parameter, click.Option):
            arguments.append(f"a-{parameter.name}")
        elif parameter.is_flag:
            options.append(parameter.opts[-1])
        else:
            options += [parameter.opts[-1], f"{parameter.name} %s [x]"]
    run(subcommands()[name], *options, *arguments)
    assert calls == [[name, *options, "--", *arguments]]


def test_what_was_not_given_is_left_to_click(calls: list[list[str]]) -> None:
    run(subcommands()["status"])
    assert calls == [["status", "--"]]


@pytest.mark.parametrize(
    ("given", "handed_over"),
    [
        (["-"], ["--", "-"]),
        (["--", "-x"], ["--", "-x"]),
        (["--name=-x", "f"], ["--name", "-x", "--", "f"]),
        (["f", "--wait"], ["--wait", "--", "f"]),
    ],
)
def test_hyphens_and_order(given: list[str], handed_over: list[str], calls: list[list[str]]) -> None:
    run(subcommands()["submit"], *given)
    assert calls == [["submit", *handed_over]]


def test_every_kind_of_option(calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    @click.command(hidden=True)
    @click.option("--color", type=click.Choice(["red", "blue"]), default="red", show_default=True)
    @click.option("--shade", type=click.Choice(["Dark"], case_sensitive=False))
    @click.option("-p", "--point", nargs=2, type=int)
    @click.option("--label", multiple=True, required=True, help="100% [bold]plain")
    @click.option("-v", "--verbose", count=True)
    @click.option("--cache/--no-cache", default=True)
    @click.option("--secret", hidden=True)
    @click.argument("files", nargs=-1)
    def every(**_: Any) -> None:
        """Short.

        [bold]Long.
        """

    command = cli._command("every", every)
    assert (command.hide, command.help) == (True, "Short.")
    assert command.description == "Short.\n\n\\[bold]Long."
    given = ["--color", "blue", "--shade", "dark", "-p", "1", "2", "--label", "a", "--label", "b", "-v", "-v"]
    given += ["--no-cache", "--secret", "s"]
    run(command, *given, "f", "g")
    assert calls == [["every", *given, "--", "f", "g"]]
    run(command, "--label", "a")
    assert calls[1] == ["every", "--label", "a", "--"]
    for wrong in (["--label", "a", "--color", "green"], ["--color", "red"]):
        with pytest.raises(SystemExit, match="2"):
            run(command, *wrong)
    capsys.readouterr()
    shown = parser_of(command).format_help()
    assert "{red,blue}" in shown
    assert "[default: red]" in shown
    assert "100% \\[bold]plain" in shown
    assert "--secret" not in shown


# -- where they work ---------------------------------------------------------------------------------------


def test_the_default_base_path_is_that_of_the_executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AIRFLOW__AIR_EXECUTOR__BASE_PATH", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    assert cli.default_base_path() == str(tmp_path / "air-executor-tasks")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AIRFLOW_HOME")
    assert cli.default_base_path() == str(tmp_path / "airflow/air-executor-tasks")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__BASE_PATH", "~/tasks")
    assert cli.default_base_path() == str(tmp_path / "tasks")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__BASE_PATH", "tasks")
    with pytest.raises(SettingsError, match="must be an absolute path"):
        cli.default_base_path()


def test_option_then_environment_then_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("option", "variable", "setting"):
        JobStore(tmp_path / name).submit(name, ["true"])
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__BASE_PATH", str(tmp_path / "setting"))

    def jobs(*arguments: str) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            run(subcommands()["status"], "--json", *arguments)
        assert ended.value.code == 0
        return [job["name"] for job in json.loads(capsys.readouterr().out)["jobs"]]

    monkeypatch.delenv("AIR_EXECUTOR_BASE_PATH", raising=False)
    assert jobs() == ["setting"]
    monkeypatch.setenv("AIR_EXECUTOR_BASE_PATH", str(tmp_path / "variable"))
    assert jobs() == ["variable"]
    assert jobs("--base-path", str(tmp_path / "option")) == ["option"]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Airflow's, with a job of an operator."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    for name in ("AIRFLOW__AIR_EXECUTOR__BASE_PATH", "AIR_EXECUTOR_BASE_PATH"):
        monkeypatch.delenv(name, raising=False)
    JobStore(tmp_path / "air-executor").submit("of-operator", ["true"])
    return tmp_path


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(subcommands()["status"], *arguments)
    return int(ended.value.code or 0)


def test_jobs_of_operators_are_found_where_there_is_no_executor(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And where there is one, it is said where the job is."""
    assert status("of-operator") == 0
    assert "of-operator" in capsys.readouterr().out
    JobStore(home / "air-executor-tasks").create_directories()
    assert status("of-operator") == 3
    assert f"; one of this name is in {home}/air-executor (--base-path)\n" in capsys.readouterr().err
    assert status("nowhere") == 3
    assert "one of this name" not in capsys.readouterr().err


def test_the_jobs_of_a_connection(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    JobStore(home / "mine").submit("j", ["true"])
    extra = {"base_path": str(home / "mine")}
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps({"conn_type": "air_executor", "extra": extra}))
    monkeypatch.setenv("AIR_EXECUTOR_BASE_PATH", str(home / "air-executor"))  # of who has it always
    assert status("j", "--conn-id", "mine") == 0
    assert "0 of 1 task done" in capsys.readouterr().out
    assert status("j", "--conn-id", "missing") == 2
    assert "air-executor: --conn-id missing: " in capsys.readouterr().err


def test_a_connection_of_another_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It says where the jobs are; what is about a machine itself is not for it."""
    with RemoteManager(tmp_path / "far", tmp_path) as far:
        monkeypatch.setenv("AIRFLOW_CONN_FAR", json.dumps(far.connection()))
        monkeypatch.setenv("AIR_EXECUTOR_URL", "https://elsewhere.invalid")  # of who has it always
        JobStore(tmp_path / "far").submit("j", ["true"])

        def code(command: str, *arguments: str) -> int | str | None:
            with pytest.raises(SystemExit) as ended:
                run(subcommands()[command], *arguments, "--conn-id", "far")
            return ended.value.code

        assert code("wait", "j") == 0
        assert code("status", "j") == 0
        assert "1 of 1 task done" in capsys.readouterr().out
        assert code("stop") == 2
        assert f"the jobs are on another machine, {far.url}; run the command there" in capsys.readouterr().err


def test_a_setting_that_is_not_valid_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AIR_EXECUTOR_BASE_PATH", raising=False)
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__BASE_PATH", "tasks")
    with pytest.raises(SystemExit, match="2"):
        run(subcommands()["status"])
    assert capsys.readouterr().err == "air-executor: [air_executor] base_path must be an absolute path, not 'tasks'\n"


# -- as a user calls it ------------------------------------------------------------------------------------


@pytest.mark.airflow
def test_help(tmp_path: Path) -> None:
    done = airflow("air-executor", "status", "--help", home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: airflow air-executor status")
    assert "--base-path" in done.stdout
    assert "[x>=1]" in done.stdout  # it is no markup


@pytest.mark.airflow
def test_submit_and_status(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"name": "j", "tasks": ["true"]}))
    done = airflow("air-executor", "submit", str(path), home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "j: waiting\n")
    base_path = tmp_path / "air-executor-tasks"
    assert JobStore(base_path).job_names() == ["j"]
    path.write_text(json.dumps({"name": "k", "tasks": []}))
    done = airflow("air-executor", "submit", str(path), home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "air-executor: tasks: the list is empty" in done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = airflow("air-executor", "status", "j", "--base-path", str(elsewhere), home=tmp_path)
    assert done.returncode == 3
    done = airflow("air-executor", "status", "--json", "--base-path", str(base_path), home=tmp_path)
    assert done.returncode == 0
    assert [job["name"] for job in json.loads(done.stdout)["jobs"]] == ["j"]


@pytest.mark.airflow
def test_a_command_is_run(tmp_path: Path) -> None:
    command = ["run", "--embedded", "--name", "j", "--", "sh", "-c", "echo hi; exit 7"]
    try:
        done = airflow("air-executor", *command, home=tmp_path)
        assert done.returncode == 7
        assert done.stdout.endswith("hi\n")
        assert JobStore(tmp_path / "air-executor-tasks").get_job("j").reason == "exit"
    finally:
        airflow("air-executor", "stop", home=tmp_path)


@pytest.mark.airflow
def test_the_manager_has_its_own_log_format(tmp_path: Path) -> None:
    done = airflow("air-executor", "manager", "--idle-timeout", "0.1", "--log-format", "json", home=tmp_path)
    assert done.returncode == 0
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines() if line.startswith("{")]
    assert str(tmp_path / "air-executor-tasks") in messages[0]
