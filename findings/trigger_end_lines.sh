#!/usr/bin/env bash
# What a trigger logs just before its event is missing in the log of its task.
#
# Expected: a task that has gone through the triggerer has each line in its log that its trigger logged before it fired.
# Seen with apache-airflow 3.3.2: the process of the triggers sends lines through a socket, of which the other process
# reads 4 KiB between two looks into the database. The end of a trigger comes through another socket, and then its log
# is closed: what is still on its way goes to the triggerer's own output. A trigger that logs much before its event, or
# a busy machine, loses the last lines, and the task succeeds.
# Here: the last line of a job's output was missing in a task's log, once in some thirty runs on a busy machine.
set -euo pipefail
source "$(dirname "$0")/support/airflow.bash"
install_airflow 3.3.2
cat >modules/counting.py <<'PYTHON'
from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

LINES = 20_000


class Counts(BaseTrigger):
    """Logs numbers, and fires."""

    def serialize(self):
        return "counting.Counts", {}

    async def run(self):
        for number in range(1, LINES + 1):
            self.log.info("number %d of %d", number, LINES)
        yield TriggerEvent(None)


class Defers(BaseOperator):
    def execute(self, context):
        self.defer(trigger=Counts(), method_name="done")

    def done(self, context, event):
        print("the trigger has fired")
PYTHON
cat >dags/counts.py <<'PYTHON'
from airflow.sdk import DAG
from counting import Defers

with DAG("counts", schedule="@once", catchup=False):
    Defers(task_id="count")
PYTHON
start_airflow
has_ended() { grep -rqs "the trigger has fired" home/logs; }
wait_for has_ended
sleep 5
logged=20000
written=$(grep -rhos 'number [0-9]* of' home/logs --include='*.trigger.*.log' | wc -l)
elsewhere=$(grep -c 'number [0-9]* of' triggerer.out || true)
echo "apache-airflow $(airflow version): of $logged lines, $written are in the log of the task; $elsewhere came after it was closed"
[ "$written" -lt "$logged" ]
