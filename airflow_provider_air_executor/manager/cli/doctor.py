"""``air-executor doctor``: what an installation has, what was tried, and what to change."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from airflow_provider_air_executor import __version__, exceptions
from airflow_provider_air_executor.manager.cli.options import json_option, print_json
from airflow_provider_air_executor.manager.cli.place import Place, flags, open_jobs, store_of, takes_place

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.base_path_check import Finding
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.manager.settings import Settings

_SHELL = "/bin/sh"
_VERSION_OF_SHELL = 'echo "${BASH_VERSION-}${KSH_VERSION-}${ZSH_VERSION-}${YASH_VERSION-}"'  # others do not say it
_SHELL_SECONDS = 10.0
_LITTLE_ROOM = 64 << 20  # bytes
_INDENT = " " * 11


class _Report(NamedTuple):
    """What is known of an installation."""

    facts: Mapping[str, Any]  # as JSON has them
    lines: Mapping[str, str]  # the same for people, by their headings
    findings: list[Finding]

    @property
    def is_well(self) -> bool:
        """Whether nothing is refused."""
        from airflow_provider_air_executor.jobs.base_path_check import Verdict

        return all(finding.verdict is not Verdict.REFUSED for finding in self.findings)


@click.command()
@takes_place
@json_option
def doctor(place: Place, as_json: bool) -> None:
    """Find out what is wrong with an installation.

    Tries in the base path what a manager needs of its file system, checks the settings and the runners that they name,
    and shows versions, room and the manager. The exit code is 1 if a manager would be refused, or could not keep a
    promise.
    """
    jobs = _opened(place)
    store = store_of(jobs)
    report = _of_another_machine(jobs) if store is None else _of_this_machine(jobs, store)
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        print_json({**report.facts, "is_well": report.is_well, "findings": findings})
    else:
        _show(report)
    if not report.is_well:
        click.get_current_context().exit(1)


def _opened(place: Place) -> Jobs:
    """The job filesystem that is meant, also one that is not there yet."""
    with contextlib.suppress(exceptions.ManagerError):
        return open_jobs(place)
    return open_jobs(place, must_exist=False)


def _of_another_machine(jobs: Jobs) -> _Report:
    from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict

    found = jobs.test()
    verdict = Verdict.WORKS if found.is_well else Verdict.REFUSED
    change = "" if found.is_well else "see to that first"
    findings = [
        Finding("the manager there", verdict, found.message, "" if found.is_well else "jobs do not run", change),
        Finding(
            "the file system there",
            Verdict.UNKNOWN,
            "it is seen on its own machine only",
            "nothing could be tried",
            "run `air-executor doctor` there",
        ),
    ]
    versions = _versions()
    return _Report({"url": jobs.where, "versions": versions}, {"at": jobs.where, **_in_words(versions)}, findings)


def _of_this_machine(jobs: Jobs, store: JobStore) -> _Report:
    from airflow_provider_air_executor.jobs import base_path_check
    from airflow_provider_air_executor.system.mounts import mount_of

    there = next(path for path in (store.base_path, *store.base_path.parents) if path.is_dir())
    tried = base_path_check.check_in_time(there)
    if base_path_check.is_away(tried):  # whatever else is asked waits, too
        known = {"base_path": jobs.where, "versions": _versions()}
        return _Report(known, {"base path": jobs.where}, list(tried))
    info, trouble = _manager(jobs)
    mount, room, versions = mount_of(there), os.statvfs(there), _versions()
    free = {"bytes": room.f_bavail * room.f_frsize, "inodes": room.f_favail if room.f_files else None}
    facts: dict[str, Any] = {
        "base_path": jobs.where,
        "tried_in": str(there),
        "file_system": mount and mount._asdict(),
        "free": free,
        "manager": info and info.as_json(),
        "user": _user(os.geteuid()),
        "umask": f"{_umask():04o}",
        "versions": versions,
    }
    lines = {
        **_in_words(versions),
        "user": f"{facts['user']}, umask {facts['umask']}",
        "base path": jobs.where + ("" if there == store.base_path else f", which is not there yet: {there} was tried"),
        "file system": f"{mount.kind} at {mount.point} ({','.join(mount.options)})" if mount else "",
        "free": _room_in_words(free),
        "manager": trouble or _manager_in_words(info),
    }
    findings = [*tried, *_of_machine(), *_of_base_path(there, free), *_of_settings(store), *_of_manager(store, info)]
    return _Report(facts, lines, findings)


# -- facts -------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    airflow = None
    with contextlib.suppress(PackageNotFoundError):  # it is not imported: that takes seconds
        airflow = version("apache-airflow")
    return {
        "air_executor": __version__,
        "airflow": airflow,
        "python": platform.python_version(),
        "python_path": sys.executable,
        "system": f"{platform.system()} {platform.release()}",
        "shell": _shell(),
    }


def _shell() -> str | None:
    """The program that is ``/bin/sh``, and its version if it says that; None if it does not run."""
    try:
        command = [_SHELL, "-c", _VERSION_OF_SHELL]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SHELL_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{os.path.basename(os.path.realpath(_SHELL))} {said.strip()}".rstrip()


def _in_words(versions: Mapping[str, str | None]) -> dict[str, str]:
    airflow = f"Airflow {versions['airflow']}" if versions["airflow"] else "no Airflow"
    python = f"Python {versions['python']} ({versions['python_path']})"
    return {
        "version": f"{versions['air_executor']}, {airflow}, {python}",
        "machine": f"{platform.node()}, {versions['system']}, {_SHELL} is {versions['shell'] or 'not there'}",
    }


def _user(uid: int) -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    return f"{uid}, which has no name here"


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _room_in_words(free: Mapping[str, int | None]) -> str:
    from airflow_provider_air_executor.jobs.usage import in_bytes

    inodes = "" if free["inodes"] is None else f", {free['inodes']:,} inodes"
    return f"{in_bytes(free['bytes'] or 0)}{inodes}"


def _manager(jobs: Jobs) -> tuple[ManagerInfo | None, str]:
    """The manager that runs, and why that is not known."""
    try:
        return jobs.manager(), ""
    except (exceptions.AirExecutorError, OSError) as error:
        return None, f"it is not known whether one runs: {error}"


def _manager_in_words(info: ManagerInfo | None) -> str:
    if info is None:
        return f"none runs; start it: air-executor manager --detach {flags()}"
    host = f" on {info.host}" if info.host else ""
    return f"{info.pid}{host}, version {info.version or 'not known'}{', paused' if info.paused else ''}"


# -- findings ----------------------------------------------------------------------------------------------


def _of_machine() -> Iterator[Finding]:
    from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict
    from airflow_provider_air_executor.system.processes import can_inspect

    if can_inspect():
        yield Finding("processes (/proc)")
    else:
        seen, means = "/proc is not mounted", "a task that runs looks like one that has ended"
        yield Finding("processes (/proc)", Verdict.REFUSED, seen, means, "mount /proc in the container or chroot")
    if _shell() is None:
        means = "no task can be started"
        yield Finding("the shell", Verdict.REFUSED, f"{_SHELL} does not run", means, "install a POSIX shell there")


def _of_base_path(there: Path, free: Mapping[str, int | None]) -> Iterator[Finding]:
    from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict

    room = free["bytes"] or 0
    if not room or free["inodes"] == 0:
        means = "no job can be submitted, and what runs is waited for"
        yield Finding("room", Verdict.REFUSED, _room_in_words(free), means, "remove old jobs, or other files")
    elif room < _LITTLE_ROOM:
        means = "once it is full no task starts until there is room again"
        yield Finding("room", Verdict.OTHERWISE, _room_in_words(free), means, "remove old jobs, or other files")
    owner = there.stat().st_uid
    seen = f"{there} belongs to {_user(owner)}"
    if not os.access(there, os.W_OK | os.X_OK):
        change = "run it as that user, or give the directory to this one"
        yield Finding("the user", Verdict.REFUSED, seen, "this user may not write there", change)
    elif owner != os.geteuid() and (there / "jobs").is_dir():
        means = "tasks of a manager that this user starts run as this user"
        yield Finding("the user", Verdict.OTHERWISE, seen, means, "start the manager as the owner of the base path")


def _of_settings(store: JobStore) -> Iterator[Finding]:
    from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict
    from airflow_provider_air_executor.manager.settings import load_settings

    try:
        settings, warnings = load_settings({"base_path": str(store.base_path)})
    except exceptions.SettingsError as error:
        yield Finding("settings", Verdict.REFUSED, str(error), "no manager starts", "correct it")
        return
    for warning in warnings:
        yield Finding("settings", Verdict.OTHERWISE, warning, "the setting has no effect", "correct its name")
    yield from _of_runners(store, settings)


def _of_runners(store: JobStore, settings: Settings) -> Iterator[Finding]:
    from airflow_provider_air_executor.engines import registry
    from airflow_provider_air_executor.engines.children import Children
    from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict

    for name in sorted(registry.named(settings)):
        try:
            registry.make(name, store, settings, os.environ, Children())
        except exceptions.SettingsError as error:
            change = "correct config.yaml, or start the manager where that is there"
            yield Finding(f"runner {name}", Verdict.REFUSED, str(error), "no manager starts", change)
        else:
            yield Finding(f"runner {name}")


def _of_manager(store: JobStore, info: ManagerInfo | None) -> Iterator[Finding]:
    from airflow_provider_air_executor.jobs import manager_status
    from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict

    if info is None:
        return
    if info.version and info.version != __version__:
        seen = f"it runs version {info.version}, and {__version__} is installed here"
        change = f"air-executor manager --replace --detach {flags()}"
        yield Finding("the manager", Verdict.OTHERWISE, seen, "it works as that version does", change)
    if why := manager_status.why_not_replaced(store):
        yield Finding("the manager", Verdict.OTHERWISE, f"it is {why}", "", "air-executor manager --replace")
    for name, problem in manager_status.problems(store).items():
        yield Finding(f"job {name}", Verdict.OTHERWISE, problem, "it is tried again", "")


# -- printing ----------------------------------------------------------------------------------------------


def _show(report: _Report) -> None:
    from airflow_provider_air_executor.jobs.base_path_check import Verdict

    for heading, text in report.lines.items():
        if text:
            click.echo(f"{heading:12}{text}")
    click.echo()
    for finding in report.findings:
        seen = f": {finding.seen}" if finding.seen else ""
        click.echo(f"{finding.verdict.value:11}{finding.subject}{seen}")
        for text in filter(None, (finding.means, finding.change)):
            click.echo(f"{_INDENT}{text}")
    click.echo()
    count = sum(finding.verdict is Verdict.REFUSED for finding in report.findings)
    click.echo("nothing is refused" if report.is_well else f"{count} refused: see what to change above")
