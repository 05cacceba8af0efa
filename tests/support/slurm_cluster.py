"""A Slurm cluster of two nodes on this machine, from Debian's packages ``slurm-wlm`` and ``munge``."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import environment, kill, parent, program, with_environment
from tests.support.waiting import PATIENCE, wait_until

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

_CONFIG = """\
ClusterName=air
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=50
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
KillWait=2
MessageTimeout=5
SlurmdTimeout=5
SlurmctldTimeout=5
ReturnToService=2
MinJobAge=60
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 OverSubscribe=NO State=UP
PartitionName=short Nodes=n1,n2 MaxTime=1 State=UP
"""


def missing() -> list[str]:
    """The programs that are not there."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class SlurmCluster:
    """munged, slurmctld and two slurmd, in a directory of their own; see :data:`environment` for how to reach them.

    :param slots: tasks that a node runs at a time.
    """

    def __init__(self, slots: int = 8) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="air-executor-slurm-"))
        self.directory.chmod(0o755)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={free_port()} "
            f"CPUs={slots} RealMemory=2000 State=UNKNOWN"
            for name in NODES
        )
        self.config = self.directory / "slurm.conf"
        self.config.write_text(
            _CONFIG.format(
                host=socket.gethostname(), controller_port=free_port(), directory=self.directory, nodes=nodes
            )
        )
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.directory / name).mkdir(mode=0o755)
        self.environment = {"SLURM_CONF": str(self.config), "PATH": PATH}

    def start(self) -> SlurmCluster:
        """Start everything, and wait until both nodes are there."""
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = [f"--{kind}-file={self.directory}/munged.{kind}" for kind in ("pid", "log", "seed")]
        self._run(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.directory}/munge.socket", *files
        )
        wait_until((self.directory / "munge.socket").exists, what="munged is up")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()
        return self

    def start_controller(self) -> None:
        """Start slurmctld."""
        self._run("slurmctld", "-D", "-f", str(self.config))

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._run(f"slurmd-{node}", "-D", "-N", node, "-f", str(self.config))

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

    def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon: ``slurmctld``, ``slurmd-n1``, ..."""
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(PATIENCE)

    def lose_node(self, node: str) -> None:
        """Kill a node with all that runs there, as a power cut does: first what could still tell of the rest."""
        tasks = [pid for pid in self._ours() if f"SLURMD_NODENAME={node}" in environment(pid)]
        steps = {parent for parent in map(parent, tasks) if program(parent) == "slurmstepd"}
        self.stop(f"slurmd-{node}")
        kill(steps)
        kill(tasks)

    def _ours(self) -> list[int]:
        return with_environment(f"SLURM_CONF={self.config}")

    def runs(self, name: str) -> bool:
        """Whether one of the programs of this cluster runs."""
        return any(program(pid) == name for pid in self._ours())

    def cancel_all(self) -> None:
        """End all jobs."""
        self.call("scancel", "--signal=KILL", "--full", "--user=root", "--state=RUNNING")
        self.call("scancel", "--user=root")
        wait_until(lambda: not self.call("squeue", "--noheader"), what="no job is left", interval=0.1)

    def close(self) -> None:
        """End everything."""
        ours = [pid for pid in self._ours() if pid not in {process.pid for process in self._processes.values()}]
        for name in reversed(list(self._processes)):
            self.stop(name)
        kill(ours)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, name: str, *flags: str) -> None:
        program = shutil.which(name.partition("-")[0], path=PATH)
        assert program is not None, f"{name} is not installed"
        with open(self.directory / f"{name}.out", "ab") as output:
            self._processes[name] = subprocess.Popen(
                [program, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
