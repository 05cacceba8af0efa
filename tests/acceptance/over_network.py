"""An Airflow on one machine, and managers on another that it reaches by a cable alone, by HTTPS or by SSH."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support import network, prepared
from tests.support.installation import EXECUTOR, Installation
from tests.support.network import FAR, Network
from tests.support.remote_manager import RemoteManager
from tests.support.sshd import PROGRAM, Sshd

CONNECTION, SSH_CONNECTION = "air_executor_default", "far"


def missing() -> list[str]:
    """What such a pair needs and is not there."""
    return network.missing() + ([] if PROGRAM.exists() else ["sshd"])


class OverNetwork:
    """Both machines. Airflow is the same for all connections, which are changed in its database.

    :param dags: the directory of DAG files.
    """

    def __init__(self, dags: Path) -> None:
        self._dags = dags
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.network = stack.enter_context(Network())
            self.far = self.network.far
            # What runs there must be able to read certificates and keys.
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="air-executor-far-")))
            self.directory.chmod(0o755)
            # This process is at the near machine from now on. What it has started to fork from is not.
            prepared.close()
            stack.callback(prepared.close)
            stack.enter_context(self.network.near.entered())
            settings = {"AIRFLOW__CORE__EXECUTOR": EXECUTOR, "AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
            self.airflow = stack.enter_context(Installation(self._dags, settings))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def store(self) -> JobStore:
        """The job filesystem at the far machine, which Airflow cannot see."""
        return JobStore(self.airflow.base_path)

    @contextlib.contextmanager
    def https(self) -> Iterator[RemoteManager]:
        """A manager that listens, and a connection to it."""
        with self._manager() as manager:
            self._connect("https", manager.connection())
            yield manager

    def _manager(self) -> RemoteManager:
        place = self.directory / "https"
        place.mkdir(exist_ok=True)
        found = RemoteManager(self.far.home / "https", place, address=FAR, run_by=self.far.as_user)
        for path in place.iterdir():
            network.give(path, self.far.uid)
        return found

    @contextlib.contextmanager
    def ssh(self) -> Iterator[Sshd]:
        """A machine with an SSH server and nothing else, and a connection to it: the manager is embedded."""
        environment = {"TMPDIR": str(self.far.home)}
        with contextlib.ExitStack() as stack:
            server = Sshd(
                self.directory / "ssh", environment=environment, address=FAR, prefix=tuple(self.far.command())
            )
            server.user = self.far.user
            stack.enter_context(server)
            self._set_connection(SSH_CONNECTION, json.loads(server.connection_uri()))
            extra = {"ssh_conn_id": SSH_CONNECTION, "base_path": str(self.far.home / "ssh"), "embedded": True}
            self._connect("ssh", {"conn_type": "air_executor", "extra": extra})
            yield server

    def _connect(self, name: str, fields: dict[str, Any]) -> None:
        self.airflow.base_path = self.far.seen_from_here / name
        self.airflow.path_there, self.airflow.commands_at = self.far.home / name, self.far.as_user
        self._set_connection(CONNECTION, fields)
        # A trigger that runs has the connection that there was when it began.
        self.airflow.stop_component("triggerer")
        self.airflow.start_component("triggerer")

    def _set_connection(self, conn_id: str, fields: dict[str, Any]) -> None:
        if conn_id in [each["connection_id"] for each in self.airflow.api("/connections")["connections"]]:
            self.airflow.api(f"/connections/{conn_id}", method="DELETE")
        self.airflow.api("/connections", {**fields, "connection_id": conn_id, "extra": json.dumps(fields["extra"])})
