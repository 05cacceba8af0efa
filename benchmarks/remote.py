"""What it costs that the manager is on another machine, which is this one here, so that no network counts (Linux).

Jobs: from the submission of a job of one task, `true`, until its end is known, median and 99th percentile. The ways
take turns, job after job, with one manager and its server: files, the server's Unix socket, HTTPS (TLS on loopback, a
token), SSH (Debian's sshd on loopback), and SSHRemoteJobOperator of Airflow's SSH provider with its own trigger, which
starts a command and polls a file every 5 s. Its first look comes as soon as its trigger has logged in, which is after
the end of such a short job: it never sleeps here.

Waiters: so many triggers of ours in one event loop wait by HTTPS. Seconds of CPU per second of this process and of the
server, in percent of a core, while no job ends, and while 20 a second do; how long after the end of a job its trigger
fires; memory; and TCP connections. Beside them, triggers of the SSH provider that poll over SSH every 5 s: what they
and sshd with its commands use. A process of its own ends the jobs, by writing their files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # managers go while their clients linger

from triggers import POLL_SECONDS, SETTLE_SECONDS, another_process, cpu_of, make_jobs, those_that_end

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote.protocol import SshTarget, Target
from airflow_provider_air_executor.server import presence
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger
from tests.support.certificates import Authority
from tests.support.run import Run
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until

FILES, SOCKET, HTTPS, SSH, OPERATOR = "files", "Unix socket", "HTTPS", "SSH", "SSHRemoteJobOperator"
CLI = [sys.executable, "-P", "-m", "airflow_provider_air_executor.manager.cli"]
WARM_UP = 3  # jobs of each way that do not count: connections are made
CONNECTION = "benchmark"
_SETTLED, _MOST_LOOKS = 0.04, 50  # the share of a core below which all wait, and for how many spans it may be above


class Machine(NamedTuple):
    """The machine of the manager."""

    store: JobStore
    process: subprocess.Popen[bytes]
    url: str
    token: str
    ca: Path

    @property
    def server(self) -> int:
        """The process id of the server."""
        info = presence.running(self.store)
        assert info is not None
        return info.pid

    @property
    def target(self) -> Target:
        """How it is reached by HTTPS."""
        return Target(url=self.url, token=self.token, ca=str(self.ca))


@contextlib.contextmanager
def machine(directory: Path, command: str) -> Iterator[Machine]:
    """A machine with a server for HTTPS.

    :param command: ``manager``, or ``serve`` for a server alone.
    """
    store = JobStore(directory / "base")
    store.create_directories()
    authority = Authority(directory)
    files = authority.issue()
    token = Tokens(store.base_path).create("airflow", Scope.ADMIN)
    flags = ["--base-path", str(store.base_path), "--listen", "127.0.0.1:0", "--log-level", "ERROR"]
    flags += ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    with subprocess.Popen([*CLI, command, *flags]) as process:
        try:
            info = wait_until(lambda: presence.running(store), what="the server answers")
            yield Machine(store, process, info.listen[0], token, authority.path)
        finally:
            process.terminate()
            process.wait()


# -- jobs ------------------------------------------------------------------------------------------------------


async def run_job(jobs: Jobs, name: str) -> None:
    """Submit a job, and wait for its end."""
    await asyncio.to_thread(jobs.submit, name, [{"command": "true"}])
    async with jobs.watching(name, interval=POLL_SECONDS) as watch:
        while not (await watch.read()).state.is_terminal:
            await watch.wait()


async def run_operator(directory: Path, name: str) -> None:
    """Do what SSHRemoteJobOperator and its trigger do, by their own code."""
    from airflow.providers.ssh.operators.ssh_remote_job import SSHRemoteJobOperator
    from airflow.sdk.exceptions import TaskDeferred

    job = SSHRemoteJobOperator(
        task_id="job", ssh_conn_id=f"{CONNECTION}_ssh", command="true", remote_base_dir=str(directory / "jobs")
    )
    names = {"dag_id": "benchmark", "task_id": "job", "run_id": name, "try_number": 1}
    context: Any = {"ti": SimpleNamespace(**names, xcom_push=lambda **_: None)}
    try:
        await asyncio.to_thread(job.execute, context)
    except TaskDeferred as deferred:
        async for event in deferred.trigger.run():
            assert event.payload["status"] == "success", event


async def measure_jobs(number: int, directory: Path) -> Mapping[str, list[float]]:
    """Run so many jobs each way, and tell how long each has taken, in seconds."""
    with machine(directory, "manager") as there, Sshd(directory / "sshd") as sshd:
        os.environ[f"AIRFLOW_CONN_{CONNECTION.upper()}_SSH"] = sshd.connection_uri()
        base_path = str(there.store.base_path)
        ssh = SshTarget(sshd.host, sshd.port, sshd.user, key_file=str(sshd.key), known_hosts=str(sshd.known_hosts))
        of_jobs: dict[str, Jobs] = {
            FILES: FileJobs(there.store),
            SOCKET: remote.connect(Target(socket=str(presence.socket_path(there.store)))),
            HTTPS: remote.connect(there.target),
            SSH: remote.connect(Target(ssh=ssh, base_path=base_path)),
        }
        ways: dict[str, Callable[[str], Awaitable[None]]] = {
            **{way: lambda name, jobs=jobs: run_job(jobs, name) for way, jobs in of_jobs.items()},  # type: ignore[misc]
            OPERATOR: lambda name: run_operator(directory, name),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for index in range(number + WARM_UP):
            for place, (way, run) in enumerate(ways.items()):
                began = time.perf_counter()
                await run(f"j{place}-{index}")
                taken[way].append(time.perf_counter() - began)
        return {way: seconds[WARM_UP:] for way, seconds in taken.items()}


# -- waiters ---------------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What two processes have used, in seconds of CPU."""

    client: float
    server: float


def _usage(server: int) -> Usage:
    return Usage(time.process_time(), cpu_of(server))


async def usage_over(seconds: float, server: int) -> Usage:
    """What this process, and the server with what it starts, use of a core.

    :param server: its process id.
    """
    before, began = _usage(server), time.monotonic()
    await asyncio.sleep(seconds)
    return _share(before, _usage(server), time.monotonic() - began)


def _share(before: Usage, after: Usage, seconds: float) -> Usage:
    return Usage((after.client - before.client) / seconds, (after.server - before.server) / seconds)


async def settled(server: int) -> Usage:
    """Wait until all triggers have looked at their jobs once, and said so in the logs of their tasks.

    :return: the seconds of CPU that it has taken, with the start of this process.
    """
    for _ in range(_MOST_LOOKS):
        if sum(await usage_over(SETTLE_SECONDS, server)) < _SETTLED:
            break
    return _usage(server)


def memory(pid: int) -> float:
    """The memory of a process, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def connections(port: int) -> int:
    """How many TCP connections there are to a port of this machine."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


class Found(NamedTuple):
    """What was measured of waiters."""

    number: int
    idle: Usage
    busy: Usage
    latencies: list[float]  # seconds from the end of a job until its trigger fires

    @property
    def each(self) -> float:
        """The CPU that each of them takes on both sides, of a core, while no job ends."""
        return sum(self.idle) / self.number


@contextlib.asynccontextmanager
async def waiting(runs: Mapping[str, Any], fired: dict[str, float]) -> AsyncIterator[None]:
    """Run triggers, and note when they fire.

    :param runs: by a name for each.
    """

    async def wait(name: str, trigger: Any) -> None:
        async for _ in trigger.run():
            fired[name] = time.time()

    tasks = [asyncio.create_task(wait(name, trigger)) for name, trigger in runs.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure_waiters(number: int, seconds: float, directory: Path) -> Found:
    """Wait for so many jobs by HTTPS."""
    make_jobs(JobStore(directory / "base"), number)
    with machine(directory, "serve") as there:
        host, _, port = there.url.rpartition("/")[2].rpartition(":")
        connection = {"conn_type": "air_executor", "host": host, "port": int(port), "password": there.token}
        os.environ[f"AIRFLOW_CONN_{CONNECTION.upper()}"] = json.dumps({**connection, "extra": {"ca": str(there.ca)}})
        server, fired, ends = there.server, dict[str, float](), dict[str, float]()
        before = memory(os.getpid()), memory(server)
        triggers = {
            f"w{index}": AirExecutorJobTrigger(f"w{index}", air_executor_conn_id=CONNECTION) for index in range(number)
        }
        async with waiting(triggers, fired):
            began_with = await settled(server)
            idle = await usage_over(seconds, server)
            opened = connections(int(port))
            begun, began = _usage(server), time.monotonic()
            names = those_that_end(number, seconds)
            with another_process(there.store, names) as process:
                assert process.stdout is not None
                while line := await asyncio.to_thread(process.stdout.readline):
                    name, at = line.split()
                    ends[name] = float(at)
                await asyncio.to_thread(wait_until, lambda: len(fired) >= len(names), timeout=60, what="all have fired")
            busy = _share(begun, _usage(server), time.monotonic() - began)
            now = memory(os.getpid()), memory(server)
        print(f"CPU until all wait: client {began_with.client:.0f} s, server {began_with.server:.0f} s")
        print(f"{opened} TCP connections to the server while no job ends")
        print(
            f"memory of the client {before[0]:.0f} -> {now[0]:.0f} MB, of the server {before[1]:.0f} -> {now[1]:.0f} MB"
        )
        return Found(number, idle, busy, [fired[name] - ends[name] for name in names])


async def measure_poll(number: int, seconds: float, directory: Path) -> Found:
    """Wait for so many commands with the trigger of the SSH provider."""
    from airflow.providers.ssh.triggers.ssh_remote_job import SSHRemoteJobTrigger
    from airflow.providers.ssh.utils.remote_job import RemoteJobPaths

    with Sshd(directory / "sshd") as sshd:
        os.environ[f"AIRFLOW_CONN_{CONNECTION.upper()}_SSH"] = sshd.connection_uri()
        paths = {f"w{index}": RemoteJobPaths(f"w{index}", "posix", str(directory)) for index in range(number)}
        for each in paths.values():
            os.mkdir(each.job_dir)
        fired, ends = dict[str, float](), dict[str, float]()
        async with contextlib.AsyncExitStack() as stack:
            for name, each in paths.items():  # as they come in a triggerer, not all at once
                files = {"log_file": each.log_file, "exit_code_file": each.exit_code_file, "remote_os": "posix"}
                trigger = SSHRemoteJobTrigger(f"{CONNECTION}_ssh", None, name, each.job_dir, **files)  # type: ignore[arg-type]
                await stack.enter_async_context(waiting({name: trigger}, fired))
                await asyncio.sleep(POLL_SECONDS / number)
            await asyncio.sleep(SETTLE_SECONDS)
            idle = await usage_over(seconds, sshd.pid)
            begun, began = _usage(sshd.pid), time.monotonic()
            for name in random.Random(1).sample(list(paths), number):
                await asyncio.sleep(seconds / number)
                ends[name] = time.time()
                await asyncio.to_thread(Path(paths[name].exit_code_file).write_text, "0")
            await asyncio.to_thread(wait_until, lambda: len(fired) >= number, timeout=60, what="all have fired")
            busy = _share(begun, _usage(sshd.pid), time.monotonic() - began)
        return Found(number, idle, busy, [fired[name] - ends[name] for name in ends])


# -- tables ----------------------------------------------------------------------------------------------------


def p50(values: list[float]) -> float:
    """The median, in milliseconds."""
    return 1000 * statistics.median(values)


def p99(values: list[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return 1000 * statistics.quantiles(values, n=100, method="inclusive")[98]


def show_jobs(taken: Mapping[str, list[float]]) -> None:
    """Print the table of the jobs."""
    print(f"{'submit to completed':24}{'median':>12}{'p99':>12}{'of files':>12}")
    for way, seconds in taken.items():
        ratio = p50(seconds) / p50(taken[FILES])
        print(f"{way:24}{p50(seconds):>9.1f} ms{p99(seconds):>9.1f} ms{ratio:>12.1f}", flush=True)


def show_waiters(ours: Found | None, poll: Found | None) -> None:
    """Print the table of the waiters."""
    columns = ("client, idle", "server, idle", "client, ends", "server, ends", "p50", "p99", "CPU each")
    print(f"{'waiters':>8}  {'':18}" + "".join(f"{column:>14}" for column in columns))
    for what, found in (("ours, HTTPS", ours), ("a poll over SSH", poll)):
        if found is not None:
            shares = "".join(f"{100 * share:>12.2f} %" for share in (*found.idle, *found.busy))
            times = f"{p50(found.latencies):>11.1f} ms{p99(found.latencies):>11.1f} ms"
            print(f"{found.number:>8}  {what:18}{shares}{times}{100 * found.each:>12.5f} %")
    if ours is not None and poll is not None:
        faster, less = p50(poll.latencies) / p50(ours.latencies), poll.each / max(ours.each, 1e-9)
        print(f"noticed {faster:.0f} times faster (median), with 1/{less:.0f} of the CPU for each waiter")


def measured(measure: Callable[..., Any], number: int, *more: float) -> Any:
    """The result of a measurement, which has a process for itself: what an earlier one has left would use its time."""
    if not number:
        return None
    with (
        tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as directory,
        ProcessPoolExecutor(1, get_context("fork")) as pool,
    ):
        return pool.submit(_measure, measure, number, *more, Path(directory)).result()


def _measure(measure: Callable[..., Any], *arguments: Any) -> Any:
    return asyncio.run(measure(*arguments))


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, Airflow "
        f"{version('apache-airflow')}, apache-airflow-providers-ssh {version('apache-airflow-providers-ssh')}"
    )

    if taken := measured(measure_jobs, arguments.jobs):
        show_jobs(taken)
    ours = measured(measure_waiters, arguments.waiters, arguments.seconds)
    show_waiters(ours, measured(measure_poll, arguments.polls, arguments.seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help="of each way; default: %(default)s")
    parser.add_argument("--waiters", type=int, default=10_000, help="of ours; default: %(default)s")
    parser.add_argument("--polls", type=int, default=50, help="waiters that poll over SSH; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement; default: %(default)s")
    given = parser.parse_args()
    with Run():
        main(given)
