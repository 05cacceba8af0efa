#!/usr/bin/env bash
# on_kill of a trigger that takes longer than a second never comes to its end, and nothing says so.
#
# Expected: what a user marks or clears while it is deferred gets its trigger's on_kill, which may take as long as
# [triggerer] on_kill_timeout says, 30 s by default.
# Seen with apache-airflow 3.3.2: the supervisor names a trigger that is to be cancelled in each of its messages, one a
# second, until it has ended, and TriggerRunner.cancel_triggers cancels it each time. The second one strikes inside
# on_kill, and run_trigger passes over the CancelledError without a line in any log.
# Here: on a slow machine the job of a task that was marked was not cancelled. What our on_kill asks is a task of its own
# now (AirExecutorJobTrigger.on_kill).
set -euo pipefail
source "$(dirname "$0")/support/airflow.bash"
install_airflow 3.3.2
export KILLS=$work/kills
cat >modules/killing.py <<'PYTHON'
import asyncio
import os

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent


class Waits(BaseTrigger):
    """Writes a line when it begins to wait, when its on_kill begins, and when that is over, five seconds later."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def serialize(self):
        return "killing.Waits", {"path": self.path}

    def say(self, word):
        with open(self.path, "a") as file:
            file.write(f"{word}\n")

    async def run(self):
        self.say("waits")
        await asyncio.sleep(3600)
        yield TriggerEvent(None)

    async def on_kill(self):
        self.say("begun")
        await asyncio.sleep(5)
        self.say("over")


class Defers(BaseOperator):
    def execute(self, context):
        self.defer(trigger=Waits(os.environ["KILLS"]), method_name="done")
PYTHON
cat >dags/waits.py <<'PYTHON'
from airflow.sdk import DAG
from killing import Defers

with DAG("waits", schedule="@once", catchup=False):
    Defers(task_id="wait")
PYTHON
start_airflow
wait_for grep -q waits kills
python - "http://127.0.0.1:$port" <<'PYTHON'
import json, sys, urllib.parse, urllib.request

def call(path, body=None, token=None, method=None):
    request = urllib.request.Request(sys.argv[1] + path, json.dumps(body).encode() if body else None, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return json.load(urllib.request.urlopen(request))

token = call("/auth/token")["access_token"]
(run,) = call("/api/v2/dags/waits/dagRuns", token=token)["dag_runs"]
run_id = urllib.parse.quote(run["dag_run_id"], safe="")
call(f"/api/v2/dags/waits/dagRuns/{run_id}/taskInstances/wait", {"new_state": "success"}, token, "PATCH")
PYTHON
wait_for grep -q begun kills
sleep 15
echo "apache-airflow $(airflow version), on_kill_timeout $(airflow config get-value triggerer on_kill_timeout 2>/dev/null || echo 'not set'):"
cat kills
! grep -q over kills
! grep -rq "on_kill() timed out\|on_kill() raised" home/logs triggerer.out
