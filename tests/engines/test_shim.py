"""The lines of sh that engines share, in each shell of this machine that may be /bin/sh elsewhere."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.shim import script_elsewhere
from airflow_provider_air_executor.jobs.attempt_record import read_record
from tests.support.waiting import PATIENCE

SHELLS = [
    shell
    for shell in ("dash", "bash --posix", "busybox sh", "ksh93", "mksh", "yash", "zsh --emulate sh")
    if shutil.which(shell.split()[0])
]


@pytest.mark.parametrize("signals", [[], ["HUP", "USR1"]], ids=["", "signals"])
@pytest.mark.parametrize("shell", SHELLS)
def test_memory_is_told_by_the_group_also_after_signals(tmp_path: Path, shell: str, signals: list[str]) -> None:
    """``read`` of BusyBox 1.38 does not return once a trap has caught a signal."""
    (tmp_path / "cgroup").write_text("12:cpu,cpuacct:/other\n3:name=x:/a b\n0::/it * is:here\n")
    group = tmp_path / "mounted*/it * is:here"
    group.mkdir(parents=True)
    (group / "memory.peak").write_text("5\n")
    (tmp_path / "mountinfo").write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
        f"23 22 0:1 / {tmp_path}/none rw shared:9 - cgroup2 cgroup2 rw\n"
        f"24 22 0:1 / {group.parent} rw shared:9 - cgroup2 cgroup2 rw\n"
    )
    script = script_elsewhere("1", "", "*is:here*", {})
    for name in ("cgroup", "mountinfo"):
        assert f"/proc/self/{name}" in script
        script = script.replace(f"/proc/self/{name}", f'"{tmp_path / name}"')
    record, log = tmp_path / "record", tmp_path / "log"
    command = f"echo 1234 > {shlex.quote(str(group / 'memory.peak'))}"
    kills = "".join(f"kill -{name} $$\n" for name in signals)
    lines = f"{script}\n{kills}run {record} 2026-01-01T00:00:00Z {log} '' sh -c {shlex.quote(command)}\n"
    environment = {"PATH": os.environ["PATH"], "AIR_EXECUTOR_RUN": "0123456789abcdef"}
    done = subprocess.run(
        [*shlex.split(shell), "-c", lines], env=environment, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done
    found = read_record(str(record))
    assert found is not None
    assert (found.exit_code, found.used and found.used.max_memory) == (0, 1234)
