"""What is known of the Pods that are attended, and of the attempts that they run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.kubernetes import pods
from airflow_provider_air_executor.engines.kubernetes.output import Output
from airflow_provider_air_executor.engines.kubernetes.pods import Status
from airflow_provider_air_executor.engines.protocol import Attempt, Ended

FIRST_SILENCE = 3.0  # seconds


@dataclass(eq=False)
class Run:
    """An attempt, and how it stands.

    :param attempt: None if this manager does not know it yet, but has taken over the Pod in which it runs.
    :param token: the word by which it is known, used once.
    """

    attempt: Attempt | None
    token: str
    has_started: bool = False
    cancelling: bool | None = None  # whether it is killed; None: nobody has asked
    where: str = ""
    is_over: bool = False
    ended: Ended | None = None  # what is to be told when it is known


@dataclass(eq=False)
class Pod:
    """A Pod, as far as it is known.

    :param job_name: the job to which all that it runs belongs.
    :param token: the word by which it is known, used once.
    :param manifest: its description.
    :param noted: the same as it is noted: if it runs several attempts, without what it is to run.
    :param output: that of the container in which the attempts run.
    :param handle_path: where it is noted.
    :param runs: the attempts; if there are several, it runs one after the other.
    """

    job_name: str
    token: str
    manifest: Mapping[str, Any]
    noted: Mapping[str, Any]
    output: Output
    handle_path: Path
    runs: list[Run]
    is_adopted: bool = False  # whether an earlier manager may have created it
    is_created: bool = False
    created_at: float = math.inf
    status: Status | None = None
    is_gone: bool = False
    is_hidden: bool = False  # whether it is not told of any more: it is gone, or has lost the labels by which it is
    has_started: bool = False
    cancelling: bool | None = None  # whether it is killed; None: nobody has asked
    is_detached: bool = False
    since: dict[str, float] = field(default_factory=dict)  # when something that must not last has begun
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_followed: asyncio.Event = field(default_factory=asyncio.Event)
    silence: float = FIRST_SILENCE  # before its node is asked whether the output goes on in another file
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    following: asyncio.Task[None] | None = None
    deleting: asyncio.Task[None] | None = None

    @property
    def namespace(self) -> str:
        """Its namespace."""
        namespace: str = self.manifest["metadata"]["namespace"]
        return namespace

    @property
    def name(self) -> str:
        """Its name."""
        name: str = self.manifest["metadata"]["name"]
        return name

    @property
    def uid(self) -> str | None:
        """By which Kubernetes tells it from another one of its name; None as long as that is not known."""
        return self.status.uid if self.status is not None else None

    @property
    def container(self) -> str:
        """The name of the container in which the attempts run."""
        return pods.container_of(self.manifest)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.is_gone or (self.status is not None and self.status.is_over)

    @property
    def open_runs(self) -> list[Run]:
        """The attempts that are not known to be over."""
        return [run for run in self.runs if not run.is_over]

    def __str__(self) -> str:
        return f"Pod {self.namespace}/{self.name}"
