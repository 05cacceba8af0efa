"""Executors of Airflow that hand a task to a cluster by one command line, and do nothing else.

``clusters.py`` compares ours with them. They run the same program on the same node, with the same workload file and the
same environment, so that what ours takes longer is what it does itself. They look for the end of a task in a file, and
do not adopt, cancel or retry anything.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import shlex
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.utils.state import TaskInstanceState

from airflow_provider_air_executor.executor import travelling
from airflow_provider_air_executor.workload import WORKLOAD_FILE

DESCRIPTION = "BENCHMARK_BY_HAND"  # the environment variable with the description that `clusters.py` gives
SECRETS = "/run/by-hand"  # where a Pod finds the workload file
_COPIES = "/dev/shm/by-hand"  # where it may remove it


class ByHand(BaseExecutor):
    """What both have in common.

    The description has the ``directory`` in which each task gets one of its own, the ``command`` of the program and its
    ``env``.
    """

    shares_home = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._description: dict[str, Any] = json.loads(os.environ[DESCRIPTION])
        self._directories: dict[Any, Path] = {}

    def start(self) -> None:
        """There is nothing to start."""

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        for workload in workload_items:
            key = workload.ti.key
            del self.queued_tasks[key]
            self.running.add(key)
            directory = self._directories[key] = Path(self._description["directory"], str(workload.ti.id))
            directory.mkdir()
            self._submit(directory, self._content(workload))

    def _content(self, workload: Any) -> bytes:
        """The workload file, as ours has it."""
        server = conf.get("core", "execution_api_server_url")
        content = {
            "server": server,
            "directory": os.getcwd(),
            "workload": workload.model_dump(mode="json"),
            "environment": travelling.variables(True, server, shares_home=self.shares_home),
        }
        return json.dumps(content).encode()

    def _script(self, directory: Path, **variables: str) -> str:
        """Lines of ``sh`` that run the program, and leave its exit code."""
        exports = [
            f"export {name}={shlex.quote(value)}" for name, value in {**self._description["env"], **variables}.items()
        ]
        code = directory / "code"
        run = shlex.join(self._description["command"])
        return "\n".join([*exports, run, f"echo $? >{code}.new && mv {code}.new {code}", ""])

    @abstractmethod
    def _submit(self, directory: Path, content: bytes) -> None:
        """Hand a task over.

        :param directory: its own.
        :param content: of its workload file.
        """

    def sync(self) -> None:
        """See which tasks have ended."""
        for key, directory in list(self._directories.items()):
            if (directory / "code").exists():
                del self._directories[key]
                is_done = (directory / "code").read_text() == "0\n"
                self.change_state(key, TaskInstanceState.SUCCESS if is_done else TaskInstanceState.FAILED)

    def end(self) -> None:
        """Tasks go on."""

    def terminate(self) -> None:
        """Tasks go on."""


class SbatchExecutor(ByHand):
    """By ``sbatch``. The description has its ``options``, too."""

    def _submit(self, directory: Path, content: bytes) -> None:
        (directory / WORKLOAD_FILE).touch(0o600)
        (directory / WORKLOAD_FILE).write_bytes(content)
        script = "#!/bin/sh\n" + self._script(directory, AIR_EXECUTOR_JOB_DIR=str(directory))
        words = ["sbatch", "--parsable", "--chdir=/", f"--output={directory}/log", *self._description["options"]]
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "USER", "SLURM_CONF")}
        subprocess.run(words, input=script.encode(), env=kept, stdout=subprocess.DEVNULL, check=True)


class KubectlExecutor(ByHand):
    """By ``kubectl create``: a Pod, and the Secret with its workload file. The description has the ``spec``, too."""

    shares_home = False

    def _submit(self, directory: Path, content: bytes) -> None:
        name = f"by-hand-{directory.name}"
        copied = f"mkdir -m 700 {_COPIES} && cp {SECRETS}/* {_COPIES}\n"
        spec = copy.deepcopy(self._description["spec"])
        container = spec["containers"][0]
        container["command"] = ["/bin/sh", "-c", copied + self._script(directory, AIR_EXECUTOR_ATTACHED=_COPIES)]
        container["volumeMounts"].append({"name": "workload", "mountPath": SECRETS, "readOnly": True})
        spec["volumes"].append({"name": "workload", "secret": {"secretName": name}})
        data = {WORKLOAD_FILE: base64.b64encode(content).decode()}
        items = [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec},
        ]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        subprocess.run(["kubectl", "create", "-f", "-"], input=text.encode(), stdout=subprocess.DEVNULL, check=True)
