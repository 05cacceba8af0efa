"""The contract of engines, with Slurm: a real cluster of two nodes."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines import children
from airflow_provider_air_executor.engines.batch.dialect import Kept, Submission
from airflow_provider_air_executor.engines.batch.handles import make_script
from airflow_provider_air_executor.engines.children import NOT_RUN, Children, Commands, Result
from airflow_provider_air_executor.engines.protocol import Attempt, Context, Ended, Running
from airflow_provider_air_executor.engines.slurm import commands
from airflow_provider_air_executor.engines.slurm.engine import SlurmEngine
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.attempt_record import Record, read_record
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from tests.engines.batches import BatchContract
from tests.engines.contract import Engine, EngineContract
from tests.support import ordinary_user
from tests.support.jobs import await_record, ended, only_task, plain, read_log, remove, task, write_job
from tests.support.managers import CLI, Managers
from tests.support.slurm_cluster import (
    NODES,
    PATH,
    RUNNING,
    SiteCluster,
    SlurmCluster,
    missing,
    missing_for_site,
)
from tests.support.waiting import PATIENCE, nothing_until, until, wait_until

REAL = shutil.which("sbatch", path=PATH)
SQUEUE = shutil.which("squeue", path=PATH)
SHELLS = list(filter(shutil.which, ("dash", "bash", "busybox", "mksh", "yash", "ksh93", "zsh")))

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; see make slurm"),
]


@pytest.fixture
def cluster(slurm: SlurmCluster) -> SlurmCluster:
    return slurm


@pytest.fixture
def engine(cluster: SlurmCluster) -> Iterator[Engine]:
    config = "runners: {slurm: {poll_interval: 0.5}}\n"
    cluster.wait_for_nodes()  # one that did not start something may have been taken out of service
    yield Engine("slurm", config=config, environment=cluster.environment)
    cluster.cancel_all()


class TestSlurm(EngineContract):
    """A batch job for each attempt."""


def running(store: JobStore, name: str = "j") -> str:
    """Wait until a task runs on a node, and say which."""

    def node() -> str:
        found = (store.get_tasks(name)[0].where or "").partition(" on ")[2]
        return found if found in NODES else ""  # it may wait there for its turn

    return wait_until(node, what="it runs on a node")


def has_begun(file: Path) -> None:
    """Wait until a task has written a line; Slurm says before that it runs."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="it has begun")


def write_program(directory: Path, name: str, text: str) -> str:
    """Put a program in the way of one of Slurm's, and return the new PATH."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return f"{directory}:{PATH}"


_BUSY = "import time\nx = b'x' * 100_000_000\nwhile time.process_time() < 0.4: pass"
USES_MUCH = f"python3 -c {shlex.quote(_BUSY)}"


def test_what_it_has_used(store: JobStore, manager: object) -> None:
    """Its shell says how much processor time. Where there are no control groups, nothing says how much memory."""
    store.submit("j", [task("a", f"{USES_MUCH}; exit 3", resources={"memory": "400Mi"})])
    done = only_task(store)
    assert done.error == "exit code 3"
    assert done.usage is not None
    assert 0.3 <= done.usage.cpu_seconds < 60
    assert done.usage.max_memory is None


def test_what_accounting_says() -> None:
    """Of a job and its steps; one that nobody has measured has no numbers, or none that differ from 0."""
    text = """\
7|OUT_OF_MEMORY|00:02.500|||
7.batch|OUT_OF_MEMORY|00:02.500|00:00:02|1|102400K
7.extern|COMPLETED|00:00.001|00:00:00|1|0
8|CANCELLED by 0|00:00.004|||
8.batch|CANCELLED|00:00.004|1-02:03:04|1|1.5G
8.0|CANCELLED|00:00.004|00:00:10|3|1G
9|RUNNING|00:00:00|||
9.batch|COMPLETED|00:00:00|||
10|NODE_FAIL|00:00:00|||
"""
    assert commands.kept(text) == {
        "7": Kept(is_final=True, usage=Usage(cpu_seconds=2.5, max_memory=102400 * 1024)),
        "8": Kept(is_final=True, usage=Usage(cpu_seconds=93814, max_memory=3 << 29)),
        "9": Kept(is_final=False, usage=None),
        "10": Kept(is_final=True, usage=None),
    }
    assert commands.kept("what a site says\n") == {"what a site says": Kept(is_final=False, usage=None)}


def test_where_it_is(store: JobStore, manager: object, cluster: SlurmCluster, tmp_path: Path) -> None:
    store.submit("j", [task("a", until(tmp_path / "go"), slurm={"begin": "now+1hour"}, resources={"time": 3600})])
    waits = wait_until(lambda: store.get_tasks("j")[0].where, what="it is said where it is")
    said = re.fullmatch(r"Slurm job (\d+), waiting( \(\w+\))?", waits)
    assert said, waits
    released = time.time()
    cluster.call("scontrol", "update", f"JobId={said[1]}", "StartTime=now", check=True)
    assert running(store) in NODES
    command = [*CLI, "status", "j", "--base-path", str(store.base_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"Slurm job \d+ on n[12]", shown)
    (tmp_path / "go").touch()
    done = only_task(store)
    assert done.status == "completed"
    assert done.started_at is not None
    assert done.started_at.timestamp() > released - 0.1  # without the time that it waited


def test_where_it_was_if_squeue_has_not_seen_it_run(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path
) -> None:
    engine.config = "runners: {slurm: {poll_interval: 60}}\n"
    engine.prepare(managers)
    managers.environment["PATH"] = write_program(tmp_path / "bin", "squeue", "exit 0")  # it may be asked at once
    managers.start()
    store.submit("j", [task("a", "sleep 2")])
    assert re.fullmatch(r"Slurm job \d+", only_task(store).where or "")


def test_its_time_when_no_manager_saw_it(
    store: JobStore, managers: Managers, manager: subprocess.Popen[str], tmp_path: Path
) -> None:
    line = f"touch {tmp_path}/begun; sleep 1.5; touch {tmp_path}/over"
    submitted = time.time()
    store.submit("j", [task("a", line, slurm={"begin": "now+2"})])
    wait_until(lambda: store.get_tasks("j")[0].where, what="Slurm has it")
    managers.kill(manager)
    await_record(store, "j", "a")
    noticed = time.time()
    managers.start()
    done = only_task(store)
    assert done.started_at is not None
    assert done.completed_at is not None
    begun, over = ((tmp_path / name).stat().st_mtime for name in ("begun", "over"))
    assert submitted + 0.9 < done.started_at.timestamp() < begun + 0.05
    assert over - 0.05 < done.completed_at.timestamp() < noticed + 0.05
    no_handle_is_left(store)


def test_a_start_that_is_not_known_any_more(tmp_path: Path) -> None:
    record, handle = tmp_path / "t.1", tmp_path / "t.1.on-slurm"
    record.write_text("7 - token\n0\n")
    assert read_record(str(record), handle) == Record(7, None, "token", 0)
    handle.touch()
    os.utime(handle, (0, 1_700_000_000))
    assert read_record(str(record), handle) == Record(7, datetime.fromtimestamp(1_700_000_000, UTC), "token", 0)


def test_a_second_run_of_what_has_run_says_nothing(tmp_path: Path) -> None:
    """Its output would go into the log of the task."""
    record, log = tmp_path / "j's record", tmp_path / "log"
    words = [str(log), "", "echo", "hi"]
    (tmp_path / "script").write_bytes(make_script(commands, "x", {}, {}, str(record), words))
    command = ["sh", "-c", f". {tmp_path}/script"]
    runs = [subprocess.run(command, env={"SLURM_JOB_ID": "7"}, capture_output=True, check=False) for _ in range(2)]
    assert [(run.returncode, run.stdout + run.stderr) for run in runs] == [(0, b""), (97, b"")]
    assert log.read_text() == "hi\n"


_SHOW = """\
import os, subprocess
print(os.environ["a.b"], flush=True)
subprocess.run(["bash", "-c", "unset -f echo; declare -F hello"], check=True)
"""
# It prints, and a signal ends it; the shell that has started it knows no locale of this name.
_KILLED = "import os; print('hi', flush=True); os.kill(os.getpid(), 9)"
_NO_LOCALE = {"LC_ALL": "xx_XX.UTF-8"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_words_of_a_shell_are_not_those_of_the_task(tmp_path: Path, shell: str) -> None:
    """That the command was killed, and that there is no such locale."""
    log = tmp_path / "log"
    words = [str(log), "", sys.executable, "-c", _KILLED]
    (tmp_path / "script").write_bytes(make_script(commands, "x", {}, _NO_LOCALE, str(tmp_path / "record"), words))
    (tmp_path / "sh").symlink_to(shutil.which(shell) or "")
    command = [str(tmp_path / "sh"), "-c", f". {tmp_path}/script"]
    done = subprocess.run(command, env={"PATH": PATH, "SLURM_JOB_ID": "7"}, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (137, b"")
    assert log.read_text() == "hi\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_variables_for_which_a_shell_has_no_word_reach_the_command(tmp_path: Path, shell: str) -> None:
    """Functions that bash has exported are such ones: ``module``. The shell itself does not take them for its own."""
    given = {"a.b": "x 'y", "BASH_FUNC_hello%%": "() {  echo 100%\n}", "BASH_FUNC_echo%%": "() {  false\n}"}
    words = [str(tmp_path / "log"), "", sys.executable, "-c", _SHOW]
    (tmp_path / "script").write_bytes(make_script(commands, "x", {}, given, str(tmp_path / "record"), words))
    (tmp_path / "sh").symlink_to(shutil.which(shell) or "")
    command = [str(tmp_path / "sh"), "-c", f". {tmp_path}/script"]
    assert subprocess.run(command, env={"PATH": PATH, "SLURM_JOB_ID": "7"}, check=False).returncode == 0
    assert (tmp_path / "log").read_text() == "x 'y\nhello\n"


class _BashCluster(SlurmCluster):
    """A cluster whose nodes have bash as ``/bin/sh``."""

    def start_node(self, node: str) -> None:
        mount = f'mount --make-rprivate / && mount --bind {shutil.which("bash")} /bin/sh && exec "$@"'
        before = ("unshare", "--mount", "bash", "-c", mount, "bash")
        self._run(f"slurmd-{node}", "-D", "-N", node, "-f", str(self.config), before=before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount")
def test_nodes_whose_shell_is_bash(store: JobStore, managers: Managers) -> None:
    """All that is in the log is what the task has printed."""
    cluster = _BashCluster()
    try:
        cluster.start()
        managers.environment.update({**cluster.environment, **_NO_LOCALE})
        store.create_directories()
        store.config_path.write_text("runner: slurm\nrunners: {slurm: {poll_interval: 0.5}}\n")
        managers.start()
        asked = ["/bin/sh", "-c", "echo ${BASH_VERSION:+bash}"]
        shell = f"import subprocess; print(subprocess.run({asked}, env={{}}, stdout=-1, text=True).stdout, end='')"
        store.submit("j", [{"id": "a", "command": sys.executable, "args": ["-c", f"{shell}\n{_KILLED}"]}])
        done = only_task(store)
        assert (done.reason, done.exit_code) == ("signal", 137)
        assert read_log(store, "j", "a").text == "bash\nhi\n"
    finally:
        managers.close()
        cluster.close()


def test_what_it_needs_is_what_slurm_gives(store: JobStore, manager: object) -> None:
    line = (
        'echo "$SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE"; '
        'scontrol show job $SLURM_JOB_ID 2>/dev/null | grep -o "TimeLimit=[^ ]*"'
    )
    needed = {"cpus": 1.5, "memory": "100Mi", "time": "90s"}
    store.submit("j", [task("a", line, resources=needed, slurm={"partition": "main"})])
    assert only_task(store).status == "completed", read_log(store, "j", "a").text
    assert read_log(store, "j", "a").text == "2 100\nTimeLimit=00:02:00\n"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"resources": {"gpus": 1}}, "gres"),
        ({"resources": {"memory": "1T"}}, "configuration is not available|Memory required"),
        ({"slurm": {"partition": "nowhere"}}, "partition"),
        (
            {"slurm": {"partition": "short"}, "resources": {"time": "10m"}},
            "PartitionTimeLimit|PartitionConfig|time limit",
        ),
        ({"slurm": {"no_such_option": 1}}, "no-such-option"),
    ],
)
def test_what_can_never_run(store: JobStore, manager: object, more: dict[str, Any], why: str) -> None:
    store.submit("j", [task("a", "true", **more)])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "spawn")
    assert re.search(why, done.error or "", re.IGNORECASE), done.error


def test_an_option_that_is_ours(store: JobStore, manager: object) -> None:
    """It is refused where it is submitted, and when the task is started, if somebody has written the list by hand."""
    why = "array: the option array of sbatch is given by air-executor itself"
    with pytest.raises(InvalidJobError, match=rf"tasks\[0\]\.slurm: {why}"):
        store.submit("j", [task("a", "true", slurm={"array": "1-3"})])
    write_job(store, "j", [{**plain("a", "true"), "runner": "slurm", "slurm": {"array": "1-3"}}])
    done = only_task(store)
    assert (done.status, done.reason, done.error) == ("failed", "spawn", f"slurm.{why}")


def test_cancelled_by_somebody_else(store: JobStore, manager: object, cluster: SlurmCluster) -> None:
    store.submit("j", [task("a", "sleep 1000", retries=3)])
    running(store)
    cluster.call("scancel", "--name=j/a")
    done = only_task(store)
    assert (done.status, done.reason, done.attempt) == ("failed", "cancelled", 1)
    assert "CANCELLED" in (done.error or "")


def test_put_back_by_an_administrator(store: JobStore, manager: object, cluster: SlurmCluster, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"echo x >> {tmp_path}/ran; sleep 1000")])
    running(store)
    has_begun(tmp_path / "ran")
    number = cluster.call("squeue", "-h", "--name=j/a", "-o", "%i").strip()
    cluster.call("scontrol", "update", f"JobId={number}", "Requeue=1", check=True)
    cluster.call("scontrol", "requeue", number, check=True)
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "lost"), done
    wait_until(lambda: "j/a" not in cluster.call("squeue", "-h", "-o", "%j"), what="Slurm has dropped it")
    assert (tmp_path / "ran").read_text() == "x\n"


def test_submitted_twice(
    store: JobStore, managers: Managers, engine: Engine, cluster: SlurmCluster, tmp_path: Path
) -> None:
    engine.prepare(managers)
    text = f'cat > {tmp_path}/input; {REAL} "$@" < {tmp_path}/input > /dev/null; {REAL} "$@" < {tmp_path}/input'
    managers.environment["PATH"] = write_program(tmp_path / "bin", "sbatch", text)
    managers.start()
    store.submit("j", [task("a", f"echo x >> {tmp_path}/ran; sleep 2; exit 6")])
    assert only_task(store).exit_code == 6
    nothing_until(
        lambda: "j/a" not in cluster.call("squeue", "-h", "-o", "%j"),
        unless=lambda: (tmp_path / "ran").read_text() != "x\n",
        what="both are over",
    )


def test_killed_while_it_submits(store: JobStore, managers: Managers, engine: Engine, tmp_path: Path) -> None:
    """The first sbatch comes through after the second one, which the next manager has called."""
    engine.prepare(managers)
    text = f'if mkdir {tmp_path}/once 2>/dev/null; then sleep 4; fi\nexec {REAL} "$@"'
    managers.environment["PATH"] = write_program(tmp_path / "bin", "sbatch", text)
    first = managers.start()
    store.submit("j", [task("a", f"echo x >> {tmp_path}/ran; sleep 6; exit 6")])
    wait_until((tmp_path / "once").exists, what="sbatch was called")
    managers.kill(first)
    managers.start()
    done = only_task(store)
    assert (done.exit_code, done.attempt) == (6, 1)
    assert (tmp_path / "ran").read_text() == "x\n"


def test_slurm_is_away(
    store: JobStore, managers: Managers, engine: Engine, cluster: SlurmCluster, tmp_path: Path
) -> None:
    engine.prepare(managers)
    manager = managers.start()
    store.submit("before", [task("a", f"echo b >> {tmp_path}/ran; {until(tmp_path / 'go')}")])
    running(store, "before")
    # Killed, it would forget what it started in the last seconds, and give the numbers of those jobs to others.
    cluster.stop("slurmctld", signal.SIGTERM)
    (tmp_path / "go").touch()
    try:
        store.submit("meanwhile", [task("a", f"echo m >> {tmp_path}/ran")])
        store.submit("cancelled", [task("a", f"echo c >> {tmp_path}/ran")])
        assert ended(store, "before").state == "completed"  # the node has written so
        inbox.cancel(store, "cancelled")
        managers.kill(manager)
        manager = managers.start()
        # It has taken long to find out, but is not to be asked again as seldom as what has much to do.
        assert any("squeue does not answer" in line for line in manager.stderr or ())
        assert store.get_job("meanwhile").state == "working"
        wait_until(lambda: not cluster.runs("sbatch"), what="sbatch of the first manager has ended")
    finally:
        cluster.start_controller()
        cluster.wait_for_nodes()
    assert ended(store, "meanwhile").state == "completed", store.get_tasks("meanwhile")
    assert ended(store, "cancelled").reason == "cancelled"
    assert (tmp_path / "ran").read_text() == "b\nm\n"


@pytest.mark.parametrize("fenced", [False, True])
def test_a_node_is_lost(
    store: JobStore, managers: Managers, engine: Engine, cluster: SlurmCluster, tmp_path: Path, fenced: bool
) -> None:
    engine.config = f"runners: {{slurm: {{poll_interval: 0.5, fenced: {str(fenced).lower()}}}}}\n"
    engine.prepare(managers)
    managers.start()
    store.submit(
        "j",
        [task("a", f"echo $SLURMD_NODENAME >> {tmp_path}/ran; [ $AIR_EXECUTOR_ATTEMPT = 2 ] || sleep 999", retries=1)],
    )
    node = running(store)
    has_begun(tmp_path / "ran")
    cluster.lose_node(node)
    try:
        done = only_task(store)
    finally:
        cluster.start_node(node)
        cluster.wait_for_nodes()
    nodes = (tmp_path / "ran").read_text().split()
    if fenced:
        assert (done.status, done.attempt, len(nodes)) == ("completed", 2, 2)
    else:
        assert (done.status, done.reason, done.attempt, len(nodes)) == ("failed", "lost", 1, 1)
        assert "NODE_FAIL" in (done.error or "")
        assert node in (done.error or "")


def test_a_job_that_is_removed(store: JobStore, manager: object, cluster: SlurmCluster, tmp_path: Path) -> None:
    store.submit("j", [task("a", "sleep 1000")])
    running(store)
    remove(store, "j")
    wait_until(lambda: "j/a" not in cluster.call("squeue", "-h", "-o", "%j"), what="it is gone")


def test_nothing_is_left_for_others_to_read(
    store: JobStore, manager: object, cluster: SlurmCluster, tmp_path: Path
) -> None:
    line = f"{until(tmp_path / 'go')}; scontrol write batch_script $SLURM_JOB_ID -"
    store.submit("j", [task("a", line, env={"PASSWORD": "hunter2"})])
    running(store)
    assert "hunter2" not in cluster.call("scontrol", "show", "job", "--details")
    handles = list(store.paths("j").runs.glob("*.on-slurm"))
    assert [stat.S_IMODE(handle.stat().st_mode) for handle in handles] == [0o600]
    (tmp_path / "go").touch()
    assert only_task(store).status == "completed"
    assert "hunter2" not in read_log(store, "j", "a").text
    no_handle_is_left(store)


def no_handle_is_left(store: JobStore) -> None:
    """Wait until what a task has in its environment stands nowhere any more."""
    wait_until(lambda: not list(store.paths("j").runs.glob("*.on-slurm")), what="no handle is left")


def test_its_start_is_known_when_its_handle_has_gone(store: JobStore) -> None:
    """A manager that is killed before it publishes the end leaves that to the next one."""
    attempt = Attempt.of("j", "a", 1, "slurm")
    handle, record = store.paths("j").handle("a", 1, "slurm"), store.paths("j").record("a", 1)
    handle.parent.mkdir(parents=True)
    handle.write_bytes(make_script(commands, "token", {}, {}, str(record), ["log", "", "true"]))
    os.utime(handle, (0, 1_700_000_000))
    record.write_text("7 - token\n")
    children = Children()
    first, later = (SlurmEngine(Context(store, {"PATH": PATH}, {}, children)) for _ in range(2))
    assert isinstance(first.adopt(attempt), Running)
    record.write_text("7 - token\n0 told\n")
    os.utime(record, (0, 1_700_000_009))
    wait_until(lambda: any(isinstance(event, Ended) for event in first.poll()), what="it has ended")
    wait_until(lambda: not (children.reap() or first._commands._running), what="squeue has ended")
    for _ in range(3):
        found = later.adopt(attempt)
        assert isinstance(found, Ended)
        assert found.exit_code == 0
        assert found.started_at == datetime.fromtimestamp(1_700_000_000, UTC)
        assert found.ended_at == datetime.fromtimestamp(1_700_000_009, UTC)
        later.poll()
        assert not handle.exists()
    assert read_record(record) == Record(7, found.started_at, "token", 0, got_sigterm=True)


def test_what_has_ended_without_a_result_is_not_run_again_when_its_handle_has_gone(store: JobStore) -> None:
    attempt = Attempt.of("j", "a", 1, "slurm")
    record = store.paths("j").record("a", 1)
    record.parent.mkdir(parents=True)
    record.write_text("7 - token\n")
    found = SlurmEngine(Context(store, {"PATH": PATH}, {}, Children())).adopt(attempt)
    assert isinstance(found, Ended)
    assert found.reason == "lost"


@pytest.mark.parametrize("times", [1, 9])
def test_a_node_does_not_start_the_script(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path, times: int
) -> None:
    """As slurmd does now and then: the job has failed, and nothing of it has run."""
    (tmp_path / "sbatch").write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -gt {times} ] || "
        f"{{ echo '#!/bin/sh'; echo exit 2; }} > {tmp_path}/script\n"
        f"if [ -e {tmp_path}/script ]; then exec < {tmp_path}/script; rm {tmp_path}/script; fi\n"
        f'exec {REAL} "$@"\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    engine.environment = {**engine.environment, "PATH": f"{tmp_path}:{engine.environment['PATH']}"}
    engine.prepare(managers)
    managers.start()
    store.submit("j", [task("a", f"echo x >> {tmp_path}/ran")])
    done = only_task(store)
    assert len((tmp_path / "calls").read_text().split()) == 2
    if times == 1:
        assert (done.status, done.attempt) == ("completed", 1), done
        assert (tmp_path / "ran").read_text() == "x\n"
    else:
        assert (done.status, done.reason) == ("failed", "lost"), done
        assert "could not write to the job filesystem" in (done.error or "")
        assert not (tmp_path / "ran").exists()


# -- several tasks in one batch job ------------------------------------------------------------------------------


@pytest.fixture
def batched(managers: Managers, engine: Engine) -> subprocess.Popen[str]:
    """A manager whose tasks share batch jobs."""
    engine.config = "runners: {slurm: {poll_interval: 0.5, tasks_per_submission: 10}}\n"
    engine.prepare(managers)
    return managers.start()


class TestBatches(BatchContract):
    """Several tasks in one batch job."""


def test_the_node_of_a_batch_is_lost(store: JobStore, batched: object, cluster: SlurmCluster, tmp_path: Path) -> None:
    """What had not begun runs elsewhere."""
    first = task("first", f"echo x >> {tmp_path}/ran; sleep 1000")
    tasks = [first, *(task(f"t{number}", f"echo {number} >> {tmp_path}/ran") for number in range(4))]
    store.submit("j", tasks, max_parallel_tasks=5)
    wait_until((tmp_path / "ran").exists, what="the first runs")
    node = running(store)
    cluster.lose_node(node)
    try:
        ended(store, "j")
    finally:
        cluster.start_node(node)
        cluster.wait_for_nodes()
    reasons = {task.id: task.reason for task in store.get_tasks("j")}
    assert reasons == {"first": "lost", "t0": None, "t1": None, "t2": None, "t3": None}
    assert sorted((tmp_path / "ran").read_text().split()) == ["0", "1", "2", "3", "x"]


def test_a_batch_has_the_time_of_all_its_tasks(store: JobStore, batched: object, cluster: SlurmCluster) -> None:
    line = 'scontrol show job $SLURM_JOB_ID 2>/dev/null | grep -o "TimeLimit=[^ ]*"'
    tasks = [task(f"t{number}", line, resources={"time": "90s"}) for number in range(10)]
    store.submit("j", tasks, max_parallel_tasks=10)
    ended(store, "j")
    assert {read_log(store, "j", f"t{number}").text for number in range(10)} == {"TimeLimit=00:15:00\n"}


def test_a_batch_that_is_too_much_for_slurm(store: JobStore, batched: object) -> None:
    """One at a time may be submitted all the same."""
    needed = {"resources": {"time": "50s"}, "slurm": {"partition": "short"}}
    store.submit("j", [task(f"t{number}", "true", **needed) for number in range(3)], max_parallel_tasks=3)
    ended(store, "j")
    assert {task.status for task in store.get_tasks("j")} <= {"completed", "failed"}
    assert [task.error for task in store.get_tasks("j") if task.status == "failed"] == []


@pytest.mark.parametrize("name", ["tasks_per_submission", "bundle"])
def test_the_size_of_a_batch(store: JobStore, name: str) -> None:
    with pytest.raises(InvalidJobError, match=rf"tasks\[0\]\.slurm: {name}: must be a whole number from 1 to 50"):
        store.submit("j", [task("a", "true", slurm={name: 51})])


def test_side_by_side_with_local_tasks(store: JobStore, managers: Managers, engine: Engine, tmp_path: Path) -> None:
    engine.config = "runners: {slurm: {poll_interval: 0.5, max_concurrent: 2}}\nmax_concurrent_runners: 1\n"
    engine.prepare(managers)
    managers.start()
    where = "echo ${SLURM_JOB_ID:-local}"
    many = [task(f"s{number}", until(tmp_path / "go")) for number in range(3)]
    store.submit("many", many, max_parallel_tasks=3)
    light = [task("light", where, runner="local"), task("heavy", where, dependencies=["light"])]
    store.submit("mixed", [light[0]])
    has_ended = lambda name: store.get_job(name).state.is_terminal  # noqa: E731
    # The cluster's tasks do not hold it up.
    nothing_until(lambda: has_ended("mixed"), unless=lambda: has_ended("many"), what="the light one has ended")
    assert store.get_job("mixed").state == "completed"
    (tmp_path / "go").touch()
    assert ended(store, "many").state == "completed"
    store.submit("both", light)
    assert ended(store, "both").state == "completed"
    assert read_log(store, "both", "light").text == "local\n"
    assert read_log(store, "both", "heavy").text.strip().isdigit()


def test_no_slurm(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    engine = Engine("slurm")
    engine.prepare(managers)
    managers.environment["PATH"] = str(tmp_path)
    process = managers.launch()
    assert process.wait(PATIENCE) == 2
    assert "sbatch, squeue, scancel are not in PATH" in process.communicate()[1]


# -- what sites do ----------------------------------------------------------------------------------------------------


def asked(file: Path, number: int) -> None:
    """Wait until squeue has been asked so many times more, by a manager whose squeue writes a line into this file."""
    lines = lambda: len(file.read_text().splitlines()) if file.exists() else 0  # noqa: E731
    before = lines()
    wait_until(lambda: lines() >= before + number, what="squeue is asked")


def test_a_site_that_writes_its_own_comment(
    store: JobStore, managers: Managers, engine: Engine, cluster: SlurmCluster, tmp_path: Path
) -> None:
    """A number that sbatch gave is ours, whatever stands beside it; the comment is for what has no number yet."""
    engine.prepare(managers)
    text = f'echo >> {tmp_path}/asked; exec {SQUEUE} "$@"'
    managers.environment["PATH"] = write_program(tmp_path / "bin", "squeue", text)
    managers.start()
    line = f"echo x >> {tmp_path}/ran; {until(tmp_path / 'go')}"
    store.submit("j", [task("a", line, retries=1, slurm={"comment": "of the user"})])
    running(store)
    number, comment = cluster.call("squeue", "-h", "--name=j/a", "-o", "%i %k").strip().split(" ", 1)
    assert re.fullmatch(r"air-executor:[0-9a-f]{16} of the user", comment)
    cluster.call("scontrol", "update", f"JobId={number}", "Comment=of the site", check=True)
    asked(tmp_path / "asked", 4)
    (tmp_path / "go").touch()
    done = only_task(store)
    assert (done.status, done.attempt) == ("completed", 1), done
    assert (tmp_path / "ran").read_text() == "x\n"


def test_what_a_site_prints_before_the_number(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path
) -> None:
    engine.prepare(managers)
    text = f'echo "** Welcome 7"; echo; echo "to the site **"; exec {REAL} "$@"'
    managers.environment["PATH"] = write_program(tmp_path / "bin", "sbatch", text)
    managers.start()
    store.submit("j", [task("a", "true")])
    done = only_task(store)
    assert done.status == "completed"
    assert re.fullmatch(r"Slurm job \d+( on n[12])?", done.where or "")


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: QOSMaxSubmitJobPerUserLimit: Job violates accounting/QOS policy",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
    ],
)
def test_what_passes_is_waited_for_and_said(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path, said: str
) -> None:
    engine.prepare(managers)
    (tmp_path / "trouble").touch()
    text = f'if [ -e {tmp_path}/trouble ]; then echo "{said}" >&2; exit 1; fi; exec {REAL} "$@"'
    managers.environment["PATH"] = write_program(tmp_path / "bin", "sbatch", text)
    managers.start()
    waits_until(store, (tmp_path / "trouble").unlink)


def test_sbatch_that_is_away_for_a_while_is_waited_for(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path
) -> None:
    engine.prepare(managers)
    write_program(tmp_path / "bin", "sbatch", f'exec {REAL} "$@"')
    managers.environment["PATH"] = f"{tmp_path}/bin:{_without(tmp_path / 'others', 'sbatch')}"
    managers.start()
    store.submit("before", [task("a", "true")])  # a manager does not start without it
    assert only_task(store, "before").status == "completed"
    away = (tmp_path / "bin" / "sbatch").rename(tmp_path / "away")
    waits_until(store, lambda: away.rename(tmp_path / "bin" / "sbatch"))


def waits_until(store: JobStore, trouble_is_over: Callable[[], object]) -> None:
    """Submit a task that Slurm does not take before its trouble is over."""
    store.submit("j", [task("a", "true")])
    where = wait_until(lambda: store.get_tasks("j")[0].where, what="it is said why it waits")
    assert where.startswith("not taken by Slurm yet: ")
    trouble_is_over()
    assert only_task(store).status == "completed"


def _without(directory: Path, name: str) -> str:
    """A directory with all programs of the search path but one."""
    directory.mkdir()
    for folder in PATH.split(os.pathsep):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name != name and not (directory / program.name).exists():
                (directory / program.name).symlink_to(program)
    return str(directory)


@pytest.mark.skipif(bool(missing_for_site()), reason=f"not there: {', '.join(missing_for_site())}; see make slurm")
class TestSite:
    """A cluster with control groups, a prolog and limits."""

    @pytest.fixture
    def cluster(self, slurm_site: SiteCluster) -> SiteCluster:
        return slurm_site

    def test_the_contract_as_an_ordinary_user(self, cluster: SiteCluster) -> None:
        ordinary_user.run_tests(f"{__file__}::{TestSlurm.__name__}", **{RUNNING: str(cluster.directory)})

    def test_cancelled_in_the_moment_of_its_start(
        self, store: JobStore, managers: Managers, engine: Engine, tmp_path: Path
    ) -> None:
        """Tasks that run get the signal, and the others do not begin, whether or not we have seen its record."""
        engine.prepare(managers)
        managers.start("--kill-grace", "30")
        for number in range(4):
            line = f"trap 'echo cleaned > {tmp_path}/c{number}; exit 9' TERM; echo x > {tmp_path}/b{number}"
            store.submit(f"j{number}", [task("a", f"{line}; sleep 1000 & wait")])
            wait_until((tmp_path / f"b{number}").exists, what="it has begun")
            inbox.cancel(store, f"j{number}")
            assert ended(store, f"j{number}").reason == "cancelled"
            assert (tmp_path / f"c{number}").read_text() == "cleaned\n"

    def test_what_it_has_used(self, store: JobStore, manager: object) -> None:
        """Of tasks in one batch job it is known of those that have had more memory than the ones before."""
        more = {"resources": {"memory": "500Mi"}, "slurm": {"tasks_per_submission": 3}}
        lines = {"a": USES_MUCH, "b": f"{USES_MUCH} & {USES_MUCH}; wait", "c": "true"}
        store.submit("j", [task(name, line, **more) for name, line in lines.items()])
        assert ended(store, "j").error is None
        first, second, third = [done.usage for done in store.get_tasks("j")]
        assert first is not None
        assert second is not None
        assert third is not None
        assert first.cpu_seconds >= 0.3
        assert second.cpu_seconds >= 0.6
        assert third.cpu_seconds < 0.3
        assert 100_000_000 < (first.max_memory or 0) < 200_000_000 < (second.max_memory or 0) < 300_000_000
        assert third.max_memory is None

    def test_what_one_has_used_that_could_not_say_it(
        self, store: JobStore, manager: object, cluster: SiteCluster, tmp_path: Path
    ) -> None:
        """Slurm's accounting knows it, if somebody has killed it with its shim."""
        busy = _BUSY.replace("0.4", "2.5")  # Slurm samples it, in whole seconds
        line = f"{busy}\nopen({str(tmp_path / 'used')!r}, 'w').close()\ntime.sleep(1000)"
        store.submit("j", [task("a", f"exec python3 -c {shlex.quote(line)}", resources={"memory": "400Mi"})])
        wait_until((tmp_path / "used").exists, what="it has used something")
        number = re.search(r"Slurm job (\d+)", store.get_tasks("j")[0].where or "")
        assert number is not None
        shows = (
            "sstat",
            "--noheader",
            "--parsable2",
            "--noconvert",
            "--format=AveCPU,NTasks,MaxRSS",
            f"--jobs={number[1]}.batch",
        )

        def has_seen_it() -> bool:
            usage = commands.kept(f"1.batch|RUNNING|00:00|{cluster.call(*shows).strip()}")["1"].usage
            return usage is not None and usage.cpu_seconds >= 2 and (usage.max_memory or 0) > 100_000_000

        wait_until(has_seen_it, what="Slurm has seen it", interval=0.3)
        cluster.call("scancel", "--signal=KILL", "--full", number[1])
        done = only_task(store)
        assert (done.status, done.reason, done.exit_code) == ("failed", "cancelled", None)
        assert done.usage is not None
        assert 2 <= done.usage.cpu_seconds < 60
        assert 100_000_000 < (done.usage.max_memory or 0) < 200_000_000

    def test_too_much_memory(self, store: JobStore, manager: object) -> None:
        line = "exec python3 -c 'x = bytearray(400_000_000); import time; time.sleep(1000)'"
        store.submit("j", [task("a", line, resources={"memory": "60Mi"})])
        done = only_task(store)
        assert (done.status, done.reason, done.exit_code) == ("failed", "signal", 137)
        assert "OUT_OF_MEMORY" in (done.error or "")
        assert re.search(r"oom.kill event", read_log(store, "j", "a").text)  # Slurm's own words are in the log too

    def test_a_child_that_needs_too_much_memory(self, store: JobStore, manager: object) -> None:
        """What the task itself makes of it, counts."""
        line = "python3 -c 'x = bytearray(400_000_000)' || exit 5"
        store.submit("j", [task("a", line, resources={"memory": "60Mi"})])
        done = only_task(store)
        assert (done.status, done.reason, done.exit_code) == ("failed", "exit", 5)

    @pytest.mark.parametrize(
        ("qos", "more", "why"),
        [
            ("refusing", {"resources": {"cpus": 2}}, "QOSMaxCpuPerJobLimit"),
            ("small", {"resources": {"cpus": 2}}, "QOSMaxCpuPerJobLimit"),
            ("small", {"resources": {"memory": "200Mi"}}, "QOSMaxMemoryPerJob"),
            ("small", {"resources": {"time": "10m"}}, "QOSMaxWallDurationPerJobLimit"),
            ("small", {"slurm": {"nodes": 2}}, "QOSMaxNodePerJobLimit"),
            ("large", {}, "QOSMinCpuNotSatisfied"),
        ],
    )
    def test_a_limit_that_it_does_not_keep(
        self, store: JobStore, manager: object, qos: str, more: dict[str, Any], why: str
    ) -> None:
        store.submit("j", [task("a", **{**more, "slurm": {"qos": qos, **more.get("slurm", {})}})])
        done = only_task(store)
        assert (done.status, done.reason) == ("failed", "spawn")
        said = "Slurm refused it: .*" if qos == "refusing" else "Slurm will never start it: "
        assert re.match(said + why, done.error or ""), done.error

    @pytest.mark.parametrize(
        ("qos", "why"),
        [
            ("shared", r"Slurm job \d+, waiting \(QOSGrpCpuLimit\)"),
            ("single", "not taken by Slurm yet: .*QOSMaxSubmitJobPerUserLimit"),
        ],
        ids=["of-a-group", "of-submissions"],
    )
    def test_a_limit_that_others_fill(
        self, store: JobStore, manager: object, tmp_path: Path, qos: str, why: str
    ) -> None:
        store.submit("first", [task("a", until(tmp_path / "go"), slurm={"qos": qos})])
        running(store, "first")
        store.submit("j", [task("a", slurm={"qos": qos})])
        wait_until(lambda: re.match(why, store.get_tasks("j")[0].where or ""), what="it is said why it waits")
        (tmp_path / "go").touch()
        assert only_task(store).status == "completed"

    @pytest.mark.parametrize(
        ("times", "after", "outcome"),
        [(1, 0, ("completed", None, 1)), (2, 0, ("failed", "lost", 1)), (1, 3, ("completed", None, 1))],
    )
    def test_a_node_whose_prolog_fails(
        self,
        store: JobStore,
        manager: object,
        cluster: SiteCluster,
        times: int,
        after: int,
        outcome: tuple[str, str | None, int],
    ) -> None:
        """Slurm cancels the job before it has begun; that is nobody's wish, but trouble of a node as any other."""
        cluster.fail_prolog(times, after=after)
        store.submit("j", [task("a")])
        done = only_task(store)
        assert (done.status, done.reason, done.attempt) == outcome, done
        if times > 1:
            assert "its node could not start it" in (done.error or "")

    def test_a_batch_whose_node_fails_in_its_prolog(
        self, store: JobStore, batched: object, cluster: SiteCluster, tmp_path: Path
    ) -> None:
        """Its tasks are submitted once more, one by one."""
        cluster.fail_prolog(1)
        line = f"echo $SLURM_JOB_ID >> {tmp_path}/ran"
        store.submit("j", [task(f"t{number}", line) for number in range(3)], max_parallel_tasks=3)
        ended(store, "j")
        assert [(done.status, done.attempt) for done in store.get_tasks("j")] == [("completed", 1)] * 3
        assert len(set((tmp_path / "ran").read_text().split())) == 3

    def test_a_step_daemon_that_is_killed_is_no_lost_node(
        self, store: JobStore, managers: Managers, engine: Engine, cluster: SiteCluster, tmp_path: Path
    ) -> None:
        """Slurm says NODE_FAIL, but the node answers, and what it ran goes on: no site fences that."""
        engine.config = "runners: {slurm: {poll_interval: 0.5, fenced: true}}\n"
        engine.prepare(managers)
        managers.start()
        store.submit("j", [task("a", f"echo x >> {tmp_path}/ran; {until(tmp_path / 'go')}", retries=1)])
        node = running(store)
        has_begun(tmp_path / "ran")
        cluster.lose_steps(node)
        done = only_task(store)
        assert (done.status, done.reason, done.attempt) == ("failed", "lost", 1)
        assert "NODE_FAIL" in (done.error or "")
        (tmp_path / "go").touch()
        assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.parametrize("code", [9, 0])
def test_what_somebody_else_has_cancelled_has_not_completed_and_is_not_run_again(
    store: JobStore, manager: object, cluster: SlurmCluster, tmp_path: Path, code: int
) -> None:
    """Also if it hears of it, and ends with a code of its own. One that does so at once may be faster than sh."""
    line = f"trap 'sleep 1; exit {code}' TERM; echo x >> {tmp_path}/ran; while :; do sleep 0.1; done"
    store.submit("j", [task("a", line, retries=1)])
    running(store)
    has_begun(tmp_path / "ran")
    cluster.call("scancel", "--name=j/a")
    done = only_task(store)
    assert (done.reason, done.exit_code, done.attempt) == ("cancelled", code, 1)
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.parametrize("code", [9, 0])
@pytest.mark.parametrize(("state", "reason"), [("PREEMPTED", "lost"), ("TIMEOUT", "timeout")])
def test_what_slurm_ends_has_not_completed_whatever_its_exit_code(
    store: JobStore,
    managers: Managers,
    engine: Engine,
    cluster: SlurmCluster,
    tmp_path: Path,
    state: str,
    reason: str,
    code: int,
) -> None:
    """A task may hear of it, save what it has, and exit. Here it has all the time for that."""
    engine.prepare(managers)
    text = f'{SQUEUE} "$@" | sed -E "s/[|](FAILED|COMPLETED)[|]/|{state}|/"'
    managers.environment["PATH"] = write_program(tmp_path / "bin", "squeue", text)
    managers.start()
    line = f"trap 'sleep 1; exit {code}' TERM; echo x >> {tmp_path}/ran; while :; do sleep 0.1; done"
    store.submit("j", [task("a", line)])
    running(store)
    has_begun(tmp_path / "ran")
    cluster.call("scancel", "--signal=TERM", "--full", "--name=j/a")
    done = only_task(store)
    assert (done.status, done.reason, done.exit_code) == ("failed", reason, code)
    assert state in (done.error or "")


def test_a_stopped_task_hears_that_it_is_to_end(
    store: JobStore, managers: Managers, engine: Engine, tmp_path: Path
) -> None:
    engine.prepare(managers)
    managers.start("--kill-grace", "60")
    line = f"trap 'echo bye; exit' TERM; echo $$ > {tmp_path}/pid; kill -STOP $$; while :; do sleep 0.1; done"
    store.submit("j", [task("a", line)])
    has_begun(tmp_path / "pid")
    stat_of = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    wait_until(lambda: stat_of.read_text().rpartition(")")[2].split()[0] == "T", what="it has stopped itself")
    inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    assert read_log(store, "j", "a").text.endswith("bye\n")  # Slurm has a word of its own before


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        (
            "sbatch: error: AssocMaxSubmitJobLimit sbatch: error: Job violates policy (job submit limit, user's size)",
            True,
        ),
        (
            "sbatch: error: QOSMaxCpuPerJobLimit sbatch: error: Job violates policy (job submit limit, user's size)",
            False,
        ),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit (job submit limit, user's size and/or time limits)", False),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: invalid partition specified: nowhere", False),
    ],
)
def test_which_refusals_pass(said: str, passes: bool) -> None:
    assert commands.may_pass(said) is passes


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("QOSMaxCpuPerJobLimit", True),
        ("QOSMaxMemoryPerJob", True),
        ("QOSMaxNodePerJobLimit", True),
        ("QOSMinCpuNotSatisfied", True),
        ("AssocMaxCpuPerJobLimit", True),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("launch failed requeued held", True),
        ("PartitionTimeLimit", True),
        ("QOSGrpCpuLimit", False),
        ("AssocGrpMemLimit", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("QOSMaxCpuPerUserLimit", False),
        ("Resources", False),
    ],
)
def test_which_reasons_to_wait_never_end(reason: str, never: bool) -> None:
    assert commands.waits_for_ever(reason) is never


@pytest.mark.parametrize("name", ["arr", "ui", "wra", "ho", "tes", "requ", "job-n", "job_n", "o", "export"])
def test_the_beginning_of_an_option_of_ours_is_refused_too(name: str) -> None:
    """The command sbatch takes any that is not ambiguous."""
    with pytest.raises(ValueError, match="given by air-executor itself"):
        commands.check_options({name: "x"})


def test_a_second_batch_job_of_an_attempt_says_nothing(tmp_path: Path) -> None:
    """The first one has removed the handle. There are two if the number of the first never came to be known."""
    record = tmp_path / "t0.1"
    handle = tmp_path / "t0.1.on-slurm"
    submission = Submission("0123456789abcdef", "j/t0", str(handle), str(tmp_path / "log"), {}, None)
    _, script = commands.submit([submission])
    record.touch()
    done = subprocess.run(["sh"], input=script, capture_output=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    handle.write_text("echo it runs; exit 3\n")
    done = subprocess.run(["sh"], input=script, capture_output=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"it runs\n", b"")


def test_options_that_are_none_of_ours() -> None:
    given = {"partition": "gpu", "comment": "mine", "mem_per_cpu": "1G", "exclusive": True, "wait-all-nodes": 1}
    assert list(commands.check_options(given)) == ["partition", "comment", "mem-per-cpu", "exclusive", "wait-all-nodes"]


def test_of_options_that_exclude_each_other_the_nearest_one_is_left() -> None:
    site, own = {"mem": "4G", "gres": "gpu:1", "partition": "main"}, {"mem-per-cpu": "1G"}
    assert commands.nearest(site, own, {}) == {"gres": "gpu:1", "partition": "main", "mem-per-cpu": "1G"}
    assert commands.nearest(site, own, {"mem": "60M"}) == {"gres": "gpu:1", "partition": "main", "mem": "60M"}


def test_the_environment_of_the_commands_of_slurm(store: JobStore) -> None:
    """All of it becomes that of the shell of a node, which says in the task's log if it has not the locale."""
    exported = {"PATH": PATH, "SLURM_SACK_SOCKET": "/run/x", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "etl"}
    private = {
        "SBATCH_ARRAY_INX": "1-2",
        "SBATCH_EXPORT": "NIL",
        "SBATCH_REQUEUE": "1",
        "SLURM_JOB_ID": "7",
        "SECRET": "s",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "xx",
    }
    found = SlurmEngine(Context(store, {**exported, **private}, {}, Children()))
    assert found._commands._environment == found._submitter._commands._environment == exported


def test_a_command_that_cannot_be_run_here_has_said_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we are short of is no verdict of the other side."""
    results: list[Result] = []
    commands = Commands(Children(), {"PATH": PATH}, limit=1, timeout=60)
    commands.run(["no-such-command"], results.append)

    def full() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(children, "_open_buffer", full)
    commands.run(["true"], results.append)
    assert [result.exit_code for result in results] == [NOT_RUN, NOT_RUN]
    assert commands.poll_after is None


def test_a_full_disk_cuts_no_answer_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a command says does not go through the directory of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    results: list[Result] = []
    found = Children()
    commands = Commands(found, {"PATH": PATH}, limit=1, timeout=60)
    commands.run(["cat"], results.append, text=b"all of it")
    wait_until(lambda: found.reap() or results, what="it has ended")
    assert results == [Result(0, "all of it", "")]
