"""A Pod that is reconciled, as far as it is known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.kubernetes import manifest
from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt
from airflow_provider_air_executor.engines.kubernetes.output import Output
from airflow_provider_air_executor.engines.kubernetes.pod_status import Status


@dataclass(eq=False)
class Pod:
    """A Pod of one or more attempts of a job.

    :param job_name: the job to which all attempts belong.
    :param token: the word by which it is known, used once.
    :param manifest: its manifest.
    :param handle_path: the file that describes it to the next manager.
    :param attempts: it runs one after the other.
    :param attached: the files attached to the job that it gets.
    :param bare_manifest: the manifest without the script, if that is the script of a batch.
    """

    job_name: str
    token: str
    manifest: Mapping[str, Any]
    handle_path: Path
    attempts: list[BatchedAttempt]
    attached: tuple[Path, ...] = ()
    bare_manifest: Mapping[str, Any] | None = None
    output: Output = field(init=False)
    is_adopted: bool = False  # whether an earlier manager may have created it
    is_created: bool = False
    created_at: float = math.inf
    status: Status | None = None
    is_gone: bool = False
    is_hidden: bool = False  # whether the watch does not show it any more: it is gone, or its labels have been changed
    has_started: bool = False
    cancelling: bool | None = None  # whether it is killed; None: it is not cancelled
    is_detached: bool = False
    is_released: bool = False  # whether it is not reconciled any more
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.output = Output(self.token, self.attempts, is_batch=self.is_batch)

    @property
    def is_batch(self) -> bool:
        """Whether its container has the script of several attempts, which prints frames."""
        return self.bare_manifest is not None

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.manifest["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def uid(self) -> str | None:
        """The identifier that Kubernetes gave it; None as long as that is not known."""
        return self.status.uid if self.status is not None else None

    @property
    def container(self) -> str:
        """The name of the container in which the attempts run."""
        return manifest.container_of(self.manifest)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.is_gone or (self.status is not None and self.status.is_over)

    @property
    def open_attempts(self) -> list[BatchedAttempt]:
        """The attempts that have not ended, as far as it is known."""
        return [each for each in self.attempts if each.ended is None]

    def __str__(self) -> str:
        return f"Pod {self.namespace}/{self.name}"
