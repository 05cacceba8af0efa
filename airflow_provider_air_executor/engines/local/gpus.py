"""Which graphics processors this machine has for tasks, by the ids that CUDA and HIP take.

They are looked for once: when the first task asks for one. ``nvidia-smi`` may take seconds: nothing waits for it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_provider_air_executor.engines.capacity import Capacity
from airflow_provider_air_executor.engines.children import NOT_RUN, Children, Commands, Result

log = logging.getLogger("air_executor.manager")

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

_SECONDS = 60.0  # that nvidia-smi may take
_DEVICES = Path("/dev")
_ROCM_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
_NVIDIA = re.compile(r"nvidia(\d+)", re.ASCII)
_LISTED = re.compile(r"(GPU|\s+MIG)\b.*\(UUID: ([\w./-]+)\)\s*", re.ASCII)


class Gpus:
    """Finds out which graphics processors there are, and makes it known.

    :param capacity: whose ids are not known yet.
    """

    def __init__(self, capacity: Capacity, environment: Mapping[str, str], children: Children) -> None:
        self._capacity = capacity
        self._environment = environment
        self._commands = Commands(children, environment, limit=1, timeout=_SECONDS)
        self._has_begun = False

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`expire` must be called; None: never."""
        return self._commands.poll_after if self._has_begun else None

    def expire(self) -> None:
        """Do without what takes too long to answer."""
        if self._has_begun:
            self._commands.expire()

    def find(self) -> None:
        """Begin to look for them, unless that was done."""
        if self._has_begun:
            return
        self._has_begun = True
        path = shutil.which("nvidia-smi", path=self._environment.get("PATH"))
        if path is None:
            self._know(_devices())
        else:
            self._commands.run([path, "-L"], self._listed)

    def _listed(self, result: Result) -> None:
        ids = listed_ids(result.output) if result.exit_code == 0 else []
        if result.exit_code != 0:
            how = "could not be started" if result.exit_code == NOT_RUN else "has failed"
            log.warning("nvidia-smi -L %s: %s", how, result.last_words)
        self._know(ids or _devices())

    def _know(self, ids: Sequence[str]) -> None:
        log.info("graphics processors for tasks: %s", ", ".join(ids) or "none")
        self._capacity.know_gpus(ids)


def visible_ids(environment: Mapping[str, str]) -> list[str] | None:
    """Those that the environment leaves to this process and its children; None: all that there are.

    As CUDA reads it: what follows an id that there cannot be is not there.
    """
    for name in VISIBLE:
        if name in environment:
            found = []
            for word in environment[name].split(","):
                if not word.strip() or word.strip().startswith("-") or word.strip().lower() == "nodevfiles":
                    break
                found.append(word.strip())
            return found
    return None


def listed_ids(text: str) -> list[str]:
    """The ids in what ``nvidia-smi -L`` prints. A processor that is divided (MIG) is there by its parts alone."""
    found: list[str] = []
    whole = ""  # the processor that was listed last, until a part of it is
    for line in text.splitlines():
        match = _LISTED.fullmatch(line)
        if match is None:
            continue
        if match[1] == "GPU":
            whole = match[2]
        elif whole and found[-1:] == [whole]:
            found.pop()
        found.append(match[2])
    return found


def _devices() -> list[str]:
    """The indices of those that the system has files for: NVIDIA's, or else those that ROCm can use."""
    try:
        names = [match[1] for entry in _DEVICES.iterdir() if (match := _NVIDIA.fullmatch(entry.name))]
        if names:
            return sorted(names, key=int)
        nodes = [node for node in _ROCM_NODES.iterdir() if (node / "gpu_id").read_text().strip() != "0"]
    except OSError:
        return []
    return [str(index) for index in range(len(nodes))]
