"""A manager that starts commands without a shell from the first one on, and not under load only."""

from __future__ import annotations

#: Code that it runs before it begins: it waits for two launchers.
LAUNCHED = """
from airflow_provider_air_executor.engines.local import launching
from airflow_provider_air_executor.engines.local.engine import LocalEngine

launching._UNDER_LOAD, launching._MOST = 0, 2

def begin(self, *args, real=LocalEngine.__init__, **kwargs):
    real(self, *args, **kwargs)
    launching = self._starts.launching
    launching._environment = {**launching._environment, "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        launching._next_launcher()
        launcher = list(launching._launchers.values())[-1]
        while not launcher.is_ready:
            launching.poll()
        launcher.attempts[-1] = None  # so that there will be another one
    for launcher in launching._launchers.values():
        del launcher.attempts[-1]

LocalEngine.__init__ = begin
"""
