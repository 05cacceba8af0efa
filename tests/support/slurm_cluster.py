"""A Slurm cluster of two nodes on this machine, from Debian's packages ``slurm-wlm`` and ``munge``.

It has two forms: a small one, and one as sites have it, with control groups and limits, for which ``slurmdbd`` and the
core packages of MariaDB are needed too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support import mariadb, run
from tests.support.ports import free_port
from tests.support.processes import environment, kill, kill_all_with_environment, parent, program, with_environment
from tests.support.waiting import PATIENCE, wait_until

RUNNING = "TESTS_OF_AIR_EXECUTOR_SLURM"  # the environment variable with the directory of a cluster that runs already
# For a cluster that is to be different: "slurm" for its own authentication, and more lines of slurm.conf, separated by
# semicolons.
AUTHENTICATION, MORE = "AIR_EXECUTOR_TEST_SLURM_AUTHENTICATION", "AIR_EXECUTOR_TEST_SLURM_CONFIG"
NODES = ("n1", "n2")
IS_MUNGE = os.environ.get(AUTHENTICATION) != "slurm"
PROGRAMS = (*(["munged"] if IS_MUNGE else []), "slurmctld", "slurmd", "sbatch")
SITE_PROGRAMS = ("slurmdbd", "sacctmgr", *mariadb.PROGRAMS)
PATH = mariadb.PATH

_CONFIG = """\
ClusterName=air
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
{authentication}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=50
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
JobAcctGatherFrequency=task=1
KillWait=2
MessageTimeout=5
SlurmdTimeout=5
SlurmctldTimeout=5
ReturnToService=2
MinJobAge=60
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 OverSubscribe=NO State=UP
PartitionName=short Nodes=n1,n2 MaxTime=1 State=UP
"""
_MUNGE = "AuthType=auth/munge\nAuthInfo=socket={directory}/munge.socket\nCryptoType=crypto/munge"
_OWN = "AuthType=auth/slurm\nCredType=cred/slurm"  # of Slurm 24.05 and later
_SMALL = """\
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
"""
_SITE = """\
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={directory}/munge.socket
AccountingStorageEnforce=limits,qos
Prolog={directory}/prolog
"""
_ACCOUNTING = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={directory}/slurmdbd.pid
LogFile={directory}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""
_CONTROL_GROUPS = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint={directory}/cgroup
ConstrainRAMSpace=yes
"""
# It fails once for each of these files.
_PROLOG = """\
#!/bin/sh
for file in {directory}/prolog-fails-*; do
seconds=$(cat "$file" 2>/dev/null)
if rm "$file" 2>/dev/null; then sleep ${{seconds:-0}}; exit 1; fi
done
exit 0
"""
# What the jobs of a QOS may have.
LIMITS = {
    "refusing": ("MaxTRESPerJob=cpu=1", "Flags=DenyOnLimit"),
    "small": ("MaxTRESPerJob=cpu=1,mem=100M,node=1", "MaxWall=2"),
    "large": ("MinTRESPerJob=cpu=2",),
    "shared": ("GrpTRES=cpu=1",),
    "single": ("MaxSubmitJobsPerUser=1",),
}
_CONTROLLERS = ("cpuacct", "freezer", "memory")
_CGROUPS = Path("/sys/fs/cgroup")
# A node puts its jobs below the root of each hierarchy, under a name that another cluster's node has too: so it sees a
# group of its own as the root. What is mounted is seen by this node alone, and gone with it.
_IN_OWN_GROUPS = """\
for kind in {controllers}; do echo $$ > {cgroups}/$kind/{groups}/cgroup.procs; done
exec unshare --cgroup --mount sh -ec '
for kind in {controllers}; do mount --bind {cgroups}/$kind/{groups} {directory}/cgroup/$kind; done
exec "$@"' sh "$@"
"""


def missing() -> list[str]:
    """The programs that are not there."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


def missing_for_site() -> list[str]:
    """The same for a cluster as sites have it, and what control groups need."""
    found = [*missing(), *(program for program in SITE_PROGRAMS if shutil.which(program, path=PATH) is None)]
    if not all(os.access(_CGROUPS / kind / "cgroup.procs", os.W_OK) for kind in _CONTROLLERS):
        found.append(f"control groups (version 1: {', '.join(_CONTROLLERS)}) that may be written")
    elif subprocess.run(["unshare", "--cgroup", "--mount", "true"], check=False, capture_output=True).returncode:
        found.append("the right to mount")
    return found


class Slurm:
    """A cluster that runs, as its users meet it; see :attr:`environment` for how to reach it.

    :param directory: that of its configuration.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.config), "PATH": PATH}

    def wait_for_nodes(self) -> None:
        """Wait until both nodes can be given work.

        A slurmctld that was killed may have forgotten what it had started last, and take the node out of service.
        """

        def are_idle() -> bool:
            states = self.call("sinfo", "--noheader", "--Node", "--format=%T").split()
            if "drained" in states:
                self.call("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME")
            return bool(states) and set(states) == {"idle"}

        wait_until(are_idle, what="both nodes are idle", interval=0.1)

    def call(self, *words: str, check: bool = False) -> str:
        """What one of Slurm's commands prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=check, timeout=PATIENCE)
        return done.stdout

    def cancel_all(self) -> None:
        """End all jobs of this user."""
        user = f"--user={os.geteuid()}"
        self.call("scancel", "--signal=KILL", "--full", user, "--state=RUNNING")
        self.call("scancel", user)
        wait_until(lambda: not self.call("squeue", "--noheader", user), what="no job is left", interval=0.1)


class SlurmCluster(Slurm):
    """munged, slurmctld and two slurmd, in a directory of their own; see :data:`environment` for how to reach them.

    :param slots: tasks that a node runs at a time.
    :param memory: that a node has, as far as Slurm knows, in mebibytes.
    """

    def __init__(self, slots: int = 8, memory: int = 2000) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="air-executor-slurm-")))
        self.directory.chmod(0o755)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={free_port()} "
            f"CPUs={slots} RealMemory={memory} State=UNKNOWN"
            for name in NODES
        )
        words = {"host": socket.gethostname(), "controller_port": free_port(), "directory": self.directory}
        authentication = (_MUNGE if IS_MUNGE else _OWN).format(**words)
        text = _CONFIG.format(**words, authentication=authentication, nodes=nodes) + self._form()
        self.config.write_text("\n".join([text, *os.environ.get(MORE, "").split(";"), ""]))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.directory / name).mkdir(mode=0o755)

    def _form(self) -> str:
        """What its configuration says of its form."""
        return _SMALL

    def start(self) -> Self:
        """Start everything, and wait until both nodes are there."""
        key = self.directory / ("munge.key" if IS_MUNGE else "slurm.key")
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400 if IS_MUNGE else 0o600)
        if IS_MUNGE:
            self._start_munge(key)
        self._prepare()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()
        return self

    def _start_munge(self, key: Path) -> None:
        files = [f"--{kind}-file={self.directory}/munged.{kind}" for kind in ("pid", "log", "seed")]
        socket = self.directory / "munge.socket"
        self._run("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *files)
        wait_until(socket.exists, what="munged is up")

    def _prepare(self) -> None:
        """What comes before slurmctld."""

    def start_controller(self) -> None:
        """Start slurmctld."""
        self._run("slurmctld", "-D", "-f", str(self.config))

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._run(f"slurmd-{node}", "-D", "-N", node, "-f", str(self.config))

    def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon: ``slurmctld``, ``slurmd-n1``, ..."""
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(PATIENCE)

    def lose_node(self, node: str) -> None:
        """Kill a node with all that runs there, as a power cut does: first what could still tell of the rest."""
        tasks = self._tasks(node)
        self.stop(f"slurmd-{node}")
        self.lose_steps(node)
        kill(tasks)

    def lose_steps(self, node: str) -> None:
        """Kill what a node has beside each of its tasks."""
        kill({pid for pid in map(parent, self._tasks(node)) if program(pid) == "slurmstepd"})

    def _tasks(self, node: str) -> list[int]:
        return [pid for pid in self._ours() if f"SLURMD_NODENAME={node}" in environment(pid)]

    def _ours(self) -> list[int]:
        return with_environment(f"SLURM_CONF={self.config}")

    def runs(self, name: str) -> bool:
        """Whether one of the programs of this cluster runs."""
        return any(program(pid) == name for pid in self._ours())

    def close(self) -> None:
        """End everything."""
        for name in reversed(list(self._processes)):
            self.stop(name)
        kill_all_with_environment(f"SLURM_CONF={self.config}")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, name: str, *flags: str, before: Sequence[str] = (), **environment: str) -> None:
        program = shutil.which(name.partition("-")[0], path=PATH)
        assert program is not None, f"{name} is not installed"
        with open(self.directory / f"{name}.out", "ab") as output:
            self._processes[name] = subprocess.Popen(
                [*before, program, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self.environment, **environment},
            )


class SiteCluster(SlurmCluster):
    """The same as sites have it: control groups, a prolog, and limits, which slurmdbd keeps in MariaDB.

    Root and ``nobody`` have an account. Each QOS of :data:`LIMITS` may be asked for.
    """

    def __init__(self, slots: int = 8) -> None:
        self._port = free_port()
        self._database = mariadb.MariaDB()
        super().__init__(slots)
        self._groups = run.control_groups_of(self.directory)

    def _form(self) -> str:
        return _SITE.format(directory=self.directory, port=self._port)

    def fail_prolog(self, times: int, *, after: float = 0) -> None:
        """Let so many of the next jobs fail before they begin.

        :param after: seconds for which their nodes prepare them.
        """
        for number in range(times):
            (self.directory / f"prolog-fails-{number}").write_text(f"{after:g}")

    def _prepare(self) -> None:
        for name, text in {"slurmdbd.conf": _ACCOUNTING, "cgroup.conf": _CONTROL_GROUPS, "prolog": _PROLOG}.items():
            path = self.directory / name
            path.touch(0o600 if name == "slurmdbd.conf" else 0o755)  # slurmdbd asks for that
            path.write_text(text.format(directory=self.directory, port=self._port))
        for kind in _CONTROLLERS:
            (_CGROUPS / kind / self._groups).mkdir()
            (self.directory / "cgroup" / kind).mkdir(parents=True)
        self._database.start()
        self._run("slurmdbd", "-D", MYSQL_UNIX_PORT=str(self._database.socket))
        wait_until(self._accounting_answers, what="slurmdbd answers", interval=0.1)
        self._account("add", "cluster", "air")
        self._account("add", "account", "etl", "Description=x", "Organization=x")
        for name, limits in LIMITS.items():
            self._account("add", "qos", name)
            self._account("modify", "qos", name, "set", *limits)
        for user in ("root", "nobody"):
            self._account("add", "user", user, "Account=etl", "DefaultAccount=etl")
            self._account("modify", "user", user, "set", f"QOS=normal,{','.join(LIMITS)}", "DefaultQOS=normal")

    def _accounting_answers(self) -> bool:
        ended = self._processes["slurmdbd"].poll() is not None
        assert not ended, (self.directory / "slurmdbd.out").read_text()
        return "|" in self.call("sacctmgr", "-nP", "show", "qos")

    def _account(self, *words: str) -> None:
        self.call("sacctmgr", "--immediate", "--quiet", *words, check=True)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        words = {"controllers": " ".join(_CONTROLLERS), "cgroups": _CGROUPS, "groups": self._groups}
        script = _IN_OWN_GROUPS.format(**words, directory=self.directory)
        self._run(f"slurmd-{node}", "-D", "-N", node, "-f", str(self.config), before=("sh", "-ec", script, "sh"))

    def close(self) -> None:
        """End everything."""
        super().close()
        self._database.close()
        run.remove_control_groups(self._groups)
