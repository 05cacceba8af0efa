"""An Airflow as people meet it: below a path, with users who have passwords and may not all see the same."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from pathlib import Path
from typing import Any, NamedTuple

from tests.acceptance.auth_manager import WITHOUT_LOGS
from tests.support.installation import EXECUTOR, Installation
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
USERS = {"ada": "ADMIN", "bob": "VIEWER", "eve": "USER", WITHOUT_LOGS: "VIEWER"}  # their passwords are their names
BELOW = "/airflow"  # the path that Airflow is served at


class Answer(NamedTuple):
    status: int
    text: str
    headers: HTTPMessage


class WithUsers(Installation):
    """An Airflow of these users; its API is asked as ``ada``, who may do everything."""

    def __init__(self, dags: Path) -> None:
        super().__init__(dags)
        self.origin = self.url
        self.url += BELOW
        self.lineage = self.home / "lineage.jsonl"  # the events of OpenLineage
        self.tokens: dict[str, str] = {}
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({name: name for name in USERS}))
        self.environment |= {
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__AUTH_MANAGER": "tests.acceptance.auth_manager.PerDagAuthManager",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
            "AIRFLOW__CORE__EXECUTOR": EXECUTOR,  # tasks defer
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(self.lineage), "append": True}
            ),
            "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "120",  # a listener that is slower is killed
            "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> None:
        super().start()
        self._token = self.token("ada")

    def get(
        self,
        path: str,
        user: str = "",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Answer:
        """Ask for a page; its path is below Airflow's, or one that was found in a page.

        :param body: it is sent as JSON.
        """
        path = path.removeprefix(BELOW)
        sent = {"Cookie": f"_token={self.token(user)}"} if user else {}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}{path}", data, {**sent, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return Answer(answer.status, answer.read().decode(errors="replace"), answer.headers)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(errors="replace"), error.headers)

    def token(self, user: str) -> str:
        """What a user has after logging in."""
        if user not in self.tokens:
            body = {"username": user, "password": user}
            self.tokens[user] = self._request("/auth/token", body, "POST", {})["access_token"]
        return self.tokens[user]

    def add_connection(self, conn_id: str, conn_type: str, **extra: Any) -> None:
        """Set up a connection."""
        self.api("/connections", {"connection_id": conn_id, "conn_type": conn_type, "extra": json.dumps(extra)})
