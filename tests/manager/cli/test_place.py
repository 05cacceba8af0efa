"""Where a command works: files of this machine, a URL, or SSH."""

from __future__ import annotations

from typing import Any

import click
import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.cli import main
from airflow_provider_air_executor.manager.cli.place import Place, choose, ssh_target
from airflow_provider_air_executor.remote.protocol import SshTarget

URL = "https://there:8443"


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        ({}, {}, Place()),
        ({}, {"base_path": "/b"}, Place("/b")),
        ({}, {"url": URL, "ca": "ca.pem"}, Place(url=URL, ca="ca.pem")),
        ({}, {"ssh": "h"}, Place(ssh="h")),
        # What is on the command line counts more.
        ({"url": URL}, {"base_path": "/b", "ssh": "h"}, Place(url=URL)),
        ({"base_path": "/b"}, {"url": URL}, Place("/b")),
        ({"base_path": "/b"}, {"base_path": "/c"}, Place("/b")),
        ({"ssh": "h"}, {"url": URL}, Place(ssh="h")),
        # A base path is on the other machine if that is said together with it, or if all is about that machine.
        ({"ssh": "h", "base_path": "/b"}, {}, Place("/b", ssh="h")),
        ({"ssh": "h"}, {"base_path": "/b"}, Place(ssh="h")),
        ({"base_path": "/b"}, {"ssh": "h"}, Place("/b", ssh="h")),
        ({}, {"base_path": "/b", "ssh": "h", "ssh_command": "ae"}, Place("/b", ssh="h", ssh_command="ae")),
    ],
)
def test_what_is_meant(flags: dict[str, str], variables: dict[str, str], expected: Place) -> None:
    assert choose(flags, variables) == expected


def test_the_default_is_the_last_choice() -> None:
    assert choose({}, {}, default="/d") == Place("/d")
    assert choose({}, {"url": URL}, default="/d") == Place(url=URL)


@pytest.mark.parametrize(
    ("flags", "variables", "why"),
    [
        ({"url": URL, "ssh": "h"}, {}, "--url and --ssh are both given on the command line"),
        ({"url": URL, "base_path": "/b"}, {}, "--url and --base-path are both given on the command line"),
        ({}, {"url": URL, "base_path": "/b"}, "--url and --base-path are both given in the environment"),
        ({}, {"url": URL, "ssh": "h"}, "--url and --ssh are both given in the environment"),
    ],
)
def test_two_places(flags: dict[str, str], variables: dict[str, str], why: str) -> None:
    with pytest.raises(click.UsageError, match=why):
        choose(flags, variables)


def test_a_task_means_the_machine_that_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its manager was started in a shell that works with another machine."""
    monkeypatch.setenv("AIR_EXECUTOR_JOB", "j")
    assert choose({}, {"url": URL, "base_path": "/b"}) == Place("/b")
    assert choose({}, {"ssh": "h", "base_path": "/b"}) == Place("/b")
    assert choose({"url": URL}, {"base_path": "/b"}) == Place(url=URL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("login1", SshTarget("login1")),
        ("me@login1", SshTarget("login1", None, "me")),
        ("me@login1.example.com:2222", SshTarget("login1.example.com", 2222, "me")),
        ("ssh://login1:22", SshTarget("login1", 22)),
        ("me@[fe80::1]:22", SshTarget("fe80::1", 22, "me")),
        ("me@domain@login1", None),
        ("login 1", None),
        ("login1:port", None),
        ("", None),
    ],
)
def test_the_host(text: str, expected: SshTarget | None) -> None:
    if expected is None:
        with pytest.raises(click.UsageError, match="HOST"):
            ssh_target(text)
    else:
        assert ssh_target(text) == expected


@pytest.mark.parametrize("command", [["manager"], ["stop"], ["serve"], ["token", "list"]])
@pytest.mark.parametrize("place", [["--url", URL], ["--ssh", "h"]])
def test_what_is_about_this_machine_refuses_another_one(run: Any, command: list[str], place: list[str]) -> None:
    for arguments in ([*command, *place], [*place, *command]):
        done = run(*arguments)
        assert done.returncode == 2
        assert f"`{command[-1]}` is about this machine; run it on the other one, without {place[0]}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "there:8443"], "the address 'there:8443' of --url must be https://host:port"),
        (["--url", "https://:token@there"], "must not have a user or a password before its host"),
        (["--url", "http://there:8443"], "http is not encrypted"),
        (["--url", URL, "--token-file", "/nope/token"], "--token-file: [Errno 2]"),
        (["--ssh", "a b"], "'a b' is not [USER@]HOST[:PORT]"),
        (["--url", URL, "--ssh", "h"], "--url and --ssh are both given on the command line"),
    ],
)
def test_a_place_that_is_none(run: Any, arguments: list[str], why: str) -> None:
    done = run("status", *arguments)
    assert done.returncode == 2
    assert why in done.stderr


def test_every_command_takes_another_machine_or_refuses_it() -> None:
    def names(command: click.Command) -> set[str]:
        return {parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)}

    for command in main.commands.values():
        for each in command.commands.values() if isinstance(command, click.Group) else [command]:
            assert {"--base-path", "--url", "--ssh"} <= names(each), each.name


def test_there_is_nothing_to_complete_of_another_machine(store: JobStore) -> None:
    from airflow_provider_air_executor.manager.cli.completion import job_names

    store.submit("j", ["true"])
    with main.make_context("air-executor", ["--base-path", str(store.base_path), "status"]) as ctx:
        assert job_names(ctx, main.params[0], "") == ["j"]
    with main.make_context("air-executor", ["--url", URL, "status"]) as ctx:
        assert job_names(ctx, main.params[0], "") == []
