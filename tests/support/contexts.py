"""What an operator meets when Airflow runs it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class TaskInstance(SimpleNamespace):
    """What the operator and the sensor use of Airflow's."""

    def __init__(self, **changes: Any) -> None:
        values = {"dag_id": "d", "run_id": "manual__1+00:00", "task_id": "t", "map_index": -1}
        super().__init__(**{**values, "try_number": 1, "max_tries": 0, "pushed": {}, **changes})

    def xcom_push(self, key: str, value: Any) -> None:
        """Keep a value, as Airflow does."""
        self.pushed[key] = value


def context(**changes: Any) -> Any:
    """The context of a task instance with these attributes."""
    return {"ti": TaskInstance(**changes)}
