"""Whatever the files of jobs hold, the manager goes on, and so do a good job beside and all who read.

An example is a list of numbers, each of which stands for a file and what is put in its place: something that is nearly
valid, something broken, or no file at all. A manager in this process runs real commands, see
:mod:`tests.support.stepped_manager`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import (
    attachments,
    inbox,
    log_times,
    manager_control,
    manager_info,
    manager_status,
    masking,
    summary,
)
from airflow_provider_air_executor.jobs.completions import JobCompletions
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.inbox import Action, Request
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.models import Job, JobState, SubmittedBy, Task, parse_tasks, utc_now
from airflow_provider_air_executor.jobs.outputs import read_outputs
from airflow_provider_air_executor.jobs.store import dump_job, dump_tasks
from airflow_provider_air_executor.jobs.stream import LogStream
from airflow_provider_air_executor.manager.cli import main
from airflow_provider_air_executor.manager.settings import load_settings
from tests.support.jobs import read_log
from tests.support.stepped_manager import SteppedManager

EXAMPLES = int(os.environ.get("EXAMPLES", "0")) or 3 * settings().max_examples  # make fuzz
TOKEN = "0123456789abcdef"
NOW = "2026-11-28T12:00:00+00:00"
ROUNDS = 60  # of the manager, each of a second of its clock, in which nothing runs
WORDS = (
    "", " ", "a", "t", "true", "false", "null", "x" * 300, "..", "../x", "/", "a/b", ".hidden", "-", "--", "~", "$HOME",
    "\0", "a\nb", "\x1b[31m", "é", "\u202e", "\ud800", "😀" * 60, "0", "1e999", NOW, "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00", "completed", "failed", "running", "working", "waiting", "cancel", "retry", "local",
    "warm", "4Gi", "always", "any_failed", "9" * 300 + "T", "*", "%s", "{}", "<script>",
)  # fmt: skip
NUMBERS = ("0", "-0", "-1", "1", "2", "1.5", "0.001", "1e308", "1e999", "-1e999", "2147483648", "9223372036854775808",
           "9" * 40, "9" * 5000, "NaN", "Infinity", "-Infinity", "true")  # fmt: skip
DEEP = ("[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 100_000, '{"a":' * 300 + "1" + "}" * 300)

# Files in the base path that are no settings.
_BESIDE = (
    "manager.problems.json", "manager.info.json", "manager.pid", "manager.keep-alive", "readers/r", "jobs/file", "x",
)  # fmt: skip


class Raw(str):
    """A text that stands in JSON as it is."""

    __slots__ = ()


def dumps(value: Any) -> str:
    """As JSON, in which raw texts are as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    return json.dumps(value)


class Fuzz:
    """What one number stands for."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)

    def value(self, depth: int = 0) -> Any:
        """Some value of JSON."""
        kind = self.random.randrange(9 if depth < 3 else 6)
        if kind < 2:
            return self.random.choice(WORDS)
        if kind < 4:
            return Raw(self.random.choice(NUMBERS))
        if kind < 6:
            return self.random.choice([None, True, False, [], {}, "", Raw(self.random.choice(DEEP))])
        if kind < 8:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return {self.random.choice(WORDS): self.value(depth + 1) for _ in range(self.random.randrange(4))}

    def changed(self, record: Any) -> Any:
        """A record in which something else is somewhere."""
        if isinstance(record, dict) and record and self.random.random() < 0.9:
            key = self.random.choice(list(record))
            match self.random.randrange(10):
                case 0:
                    return {name: item for name, item in record.items() if name != key}
                case 1:
                    return {**record, self.random.choice(WORDS): self.value()}
                case _:
                    return {**record, key: self.changed(record[key])}
        if isinstance(record, list) and record and self.random.random() < 0.9:
            place = self.random.randrange(len(record))
            match self.random.randrange(10):
                case 0:
                    return record[:place]
                case 1:
                    return [*record, *record]
                case _:
                    return [*record[:place], self.changed(record[place]), *record[place + 1 :]]
        return self.value()

    def text(self, record: Any) -> bytes:
        """A record, changed, as text, which may be broken too."""
        for _ in range(self.random.choice([0, 1, 1, 1, 2, 5])):
            record = self.changed(record)
        return self.broken(dumps(record).encode(errors="surrogatepass"))

    def broken(self, data: bytes) -> bytes:
        """A text, which may be broken."""
        place = self.random.randrange(len(data) + 1)
        match self.random.randrange(14):
            case 0:
                return data[:place]
            case 1:
                return data[:place] + bytes([self.random.randrange(256)]) + data[place + 1 :]
            case 2:
                return data[:place] + self.random.randbytes(5) + data[place:]
            case 3:
                return b"\xef\xbb\xbf" + data
            case 4:
                return data.decode(errors="replace").encode("utf-16")
            case 5:
                return data + data
            case 6:
                return self.random.choice([b"", b"\0" * 5000, b" " * 100, b"null", b"[]", b"{}", b"1", b'"x"'])
            case 7:
                return self.random.choice(DEEP).encode()
            case _:
                return data

    def put(self, path: Path, make: Callable[[], bytes]) -> None:
        """Put it at a place: a file, mostly."""
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            match self.random.randrange(16):
                case 0:
                    path.mkdir()
                case 1:
                    os.mkfifo(path)
                case 2:
                    path.symlink_to(self.random.choice(["/etc/passwd", path.name, "/nowhere", "/dev/zero", ".", "/"]))
                case 3:
                    with socket.socket(socket.AF_UNIX) as listener:
                        listener.bind(str(path))
                case 4:
                    return
                case _:
                    path.write_bytes(make())
                    if path.parent.name == "runs":  # or its shim could be about to write it, by the real clock
                        os.utime(path, (0, 0))


def a_job(name: str) -> Job:
    return Job(
        id=f"{name}-1",
        name=name,
        created_at=utc_now(),
        updated_at=utc_now(),
        started_at=utc_now(),
        max_parallel_tasks=2,
        timeout=100.0,
        labels={"a": "b"},
        outlets=("file:///x",),
        submitted_by=SubmittedBy(dag_id="d", run_id="r", task_id="t", try_number=1),
        attempt=1,
        state=JobState.WAITING,
    )


def some_tasks(name: str) -> tuple[Task, ...]:
    return tuple(
        task.evolve(job_name=name, created_at=utc_now())
        for task in parse_tasks(
            [
                {"id": "a", "command": "true", "env": {"A": "b"}, "retries": 1, "retry_delay": 0.1},
                {"id": "b", "command": "true", "dependencies": ["a"], "timeout": 5, "cwd": "/"},
                {
                    "id": "c",
                    "command": "false",
                    "dependencies": ["a"],
                    "run_if": "any_failed",
                    "resources": {"cpus": 1, "memory": "1M", "time": "1h"},
                },
            ]
        )
    )


class Base:
    """A base path whose files are put there by numbers."""

    def __init__(self, site: SteppedManager) -> None:
        self.site = site
        self.store = site.store
        self.store.create_directories()
        self.names: list[str] = []

    def put(self, number: int) -> None:
        """What a number stands for: mostly a job, with some files that are not as they should be."""
        fuzz = Fuzz(number)
        match fuzz.random.randrange(8):
            case 0:
                self.put_request(fuzz)
            case 1:
                self.put_beside(fuzz)
            case _:
                self.put_job(fuzz)

    def put_job(self, fuzz: Fuzz) -> None:
        name = f"j{len(self.names)}"
        self.names.append(name)
        directory = self.store.base_path / f".{name}"
        directory.mkdir()
        job = json.loads(dump_job(a_job(name)))
        job["state"] = fuzz.random.choice(["waiting", "waiting", "working", "completed", "failed"])
        tasks = json.loads(dump_tasks(some_tasks(name)))
        if job["state"] != "waiting":
            for task in tasks:
                status = fuzz.random.choice(["pending", "running", "completed", "failed"])
                task.update(status=status, attempt=1, started_at=NOW, where="x")
        record = f"{fuzz.random.choice(['999999999', '1'])} {NOW} {TOKEN}\n0\n".encode()
        plain: dict[str, Callable[[], bytes]] = {
            "tasks.json": lambda: dumps(tasks).encode(),
            "state.json": lambda: dumps(job).encode(),
            "logs/a.log": lambda: b"hello\nsecret-one\n",
        }
        odd: dict[str, Callable[[], bytes]] = {
            "state.json": lambda: fuzz.text(job),
            "tasks.json": lambda: fuzz.text(tasks),
            ".tasks.json.previous": lambda: fuzz.text(tasks),
            "runs/a.1": lambda: fuzz.broken(record),
            "runs/b.1": lambda: fuzz.broken(record),
            "runs/a.2": lambda: fuzz.broken(record),
            "runs/a.99999999999": lambda: record,
            "runs/a.1.on-nothing": lambda: fuzz.broken(b"# air-executor token {}\n"),
            "runs/a.1.output": lambda: fuzz.text({"a": 1}),
            "runs/a.0.output": lambda: fuzz.text({"a": 1}),
            "runs": lambda: b"x",
            "logs": lambda: b"x",
            "work": lambda: b"x",
            "logs/a.log": lambda: fuzz.broken(b"hello\nsecret-one\n"),
            "secrets.jsonl": lambda: fuzz.text(["secret-one", "secret-two"]) + b"\n",
            ".waiter": lambda: fuzz.text({"dag_id": "d", "run_id": "r", "task_id": "t", "try_number": 2}),
            ".seen-r": lambda: fuzz.broken(b"j-1 1 \n"),
            ".streamed": lambda: fuzz.text({"a": 1}),
        }
        for file, make in plain.items():
            (directory / file).parent.mkdir(exist_ok=True)
            (directory / file).write_bytes(make())
        for file in fuzz.random.sample(list(odd), fuzz.random.choice([1, 1, 2, 3])):
            fuzz.put(directory / file, odd[file])
        named = name
        if fuzz.random.random() < 0.1:  # a name that no job has
            named = fuzz.random.choice([name + "\n", name + "é", "." + name, "x" * 240, name + " ", f"{name}\x1b[31m"])
        with contextlib.suppress(OSError):
            directory.rename(self.store.jobs_path / named)

    def put_request(self, fuzz: Fuzz) -> None:
        about = fuzz.random.choice([*self.names, "nobody"])
        action = fuzz.random.choice(list(Action))
        request = Request(request=action, job=about, created_at=utc_now(), tasks=some_tasks(about))
        if fuzz.random.random() < 0.5:
            chosen = fuzz.random.choice([("a",), ("c", "nope")])
            request = request.evolve(tasks=(), task_ids=chosen, all=fuzz.random.random() < 0.3, again=True)
        record = json.loads(request.model_dump_json(exclude_none=True))
        fuzz.put(self.store.inbox_path / f"{fuzz.random.randrange(10**9):020d}.json", lambda: fuzz.text(record))

    def put_beside(self, fuzz: Fuzz) -> None:
        file = fuzz.random.choice([*_BESIDE, "config.yaml", "manager.control.json"])
        problems = {"j0": {"problem": "x", "since": NOW}}
        config = b"poll_interval: 1\nrunners: {slurm: {max_concurrent: 1}}\npreload: [json]\n"
        broken = {"config.yaml": config, "manager.control.json": b'{"paused": false, "slots": {"local": 1}}'}
        fuzz.put(
            self.store.base_path / file,
            lambda: fuzz.broken(broken[file]) if file in broken else fuzz.text(problems),
        )

    # -- what must be so ---------------------------------------------------------------------------------------

    def a_good_job_completes(self, name: str) -> None:
        """Whatever is beside it."""
        self.site.submit(name, [{"id": "t", **self.site.command(waits=False)}], 1)
        self.advance(lambda: self.store.get_job(name).state.is_terminal)
        assert self.store.get_job(name).state is JobState.COMPLETED, self.store.get_job(name)

    def advance(self, is_so: Callable[[], bool]) -> bool:
        """Let the manager go on until something is so; False if it is not when nothing happens any more."""
        quiet = 0
        while quiet < ROUNDS:
            if is_so():
                return True
            quiet += not self.site.something_runs()
            self.site.clock.passed += 1.0
            self.site.go_round()
        return False

    def left(self) -> list[str]:
        """The jobs that have not ended, and of which nothing is said."""
        problems = manager_status.problems(self.store)
        return [
            job.name
            for job in self.store.list_jobs()
            if not job.state.is_terminal and job.name not in problems and self.store.paths(job.name).directory.exists()
        ]

    def all_end(self) -> None:
        """Some may wait for long, as they say; then they end when they are cancelled."""
        if self.advance(lambda: not self.left()):
            return
        for name in self.left():
            with contextlib.suppress(AirExecutorError):
                inbox.cancel(self.store, name)
        assert self.advance(lambda: not self.left()), [
            (self.store.get_job(name), self.store.get_tasks(name)) for name in self.left()
        ]

    def everybody_reads(self) -> None:
        """Without an error that nobody expects."""
        for name in {*self.store.job_names(), "nobody"}:
            for read in self.reads(name):
                with contextlib.suppress(AirExecutorError, OSError):
                    read()
        list(self.store.list_jobs())
        index = JobIndex(self.store)
        for job in index.jobs():
            index.counts(job.name)
        manager_status.problems(self.store)
        manager_status.pid(self.store)
        manager_info.load(self.store)
        manager_control.load(self.store)
        with contextlib.closing(Notifier()) as notifier:
            JobCompletions(self.store, "r", interval=1)._find(notifier, None)
        with contextlib.suppress(AirExecutorError):
            load_settings({"base_path": str(self.store.base_path)}, environment={})
        self.commands()

    def reads(self, name: str) -> Iterator[Callable[[], object]]:
        store = self.store
        yield lambda: list(store.get_attempts(name))
        yield lambda: read_outputs(store.paths(name), store.get_tasks(name))
        yield lambda: inbox.reattach(store.paths(name), SubmittedBy(dag_id="d", run_id="r", task_id="t", try_number=3))
        yield lambda: inbox.may_cancel(
            store.paths(name), store.get_job(name), SubmittedBy(dag_id="d", run_id="r", task_id="t")
        )
        yield lambda: attachments.append(store.paths(name), masking.FILE, b'["secret-three"]\n')
        yield lambda: manager_status.keep_alive(store)
        yield lambda: masking.load(store.paths(name)).tail(TaskLog(store.paths(name), "a"), 10)
        yield lambda: summary.failure(FileJobs(store), store.get_job(name))
        yield lambda: summary.table(store.get_tasks(name))
        yield lambda: summary.progress(store.get_tasks(name))
        yield lambda: summary.why_blocked(store, store.get_job(name), store.list_jobs())
        yield lambda: read_log(store, name, "a")
        yield lambda: log_times.read(store.paths(name), "a")
        yield lambda: LogStream(FileJobs(store), name, "r").follow(store.get_tasks(name), lambda _: None, is_over=True)

    def commands(self) -> None:
        """What people type."""
        names = [name for name in self.store.job_names() if name.startswith("j")][:2]
        for words in (
            ["status"],
            ["status", "--json"],
            ["status", "--label", "a", "--dag", "*", "--state", "failed"],
            *([word, name] for name in names for word in ("status", "results", "logs")),
            *(["logs", name, "--timestamps", "--by-time", "--since", "1h", "--tail", "3"] for name in names),
            ["prune", "--older-than", "1d"],
        ):
            result = CliRunner().invoke(main, [*words, "--base-path", str(self.store.base_path)])
            if result.exception is not None and not isinstance(result.exception, SystemExit | click.ClickException):
                raise result.exception


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(numbers=st.lists(st.integers(0, 2**32), min_size=1, max_size=12), is_before=st.booleans())
def test_files_that_hold_anything(numbers: list[int], is_before: bool) -> None:
    site = SteppedManager()
    try:
        base = Base(site)
        if not is_before:
            site.start_manager()
        for number in numbers:
            base.put(number)
        if is_before:
            site.start_manager()
        base.a_good_job_completes("good")
        base.all_end()
        base.everybody_reads()
        site.kill_manager()
        site.start_manager()
        base.a_good_job_completes("good-too")
        base.all_end()
        wrong = [line for line in site.lines.lines if "something could not be done" in line or "cannot say" in line]
        assert not wrong
    finally:
        site.close()


def test_an_example_is_always_the_same() -> None:
    """Otherwise a failure could not be looked at."""
    assert Fuzz(7).text([{"a": 1}]) == Fuzz(7).text([{"a": 1}])
