"""DAGs for the tests of the operator: what becomes of a job when something happens to the task that waits for it."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, Context, task

from airflow_provider_air_executor.event_triggers import AirExecutorJobEventTrigger
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor

try:
    from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
except ImportError:  # before Airflow 3.3
    ExceptionRetryPolicy = None  # type: ignore[assignment, misc]

ARGUMENTS = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "schedule": None, "catchup": False}

# A job goes on until a file is there, which the tests make when they have seen enough of it.
UNTIL = "until test -e '{{ params.go }}'; do"
LINE = f"echo started; i=0; {UNTIL} i=$((i + 1)); echo line $i; sleep 1; done; echo '\"done\"' > "

for dag_id, deferrable in (("waits", True), ("holds_a_worker", False)):
    with DAG(dag_id, params={"go": ""}, **ARGUMENTS):
        AirExecutorSubmitOperator(
            task_id="submit",
            tasks=[{"id": "work", "bash": LINE + "$AIR_EXECUTOR_OUTPUT"}],
            job_name=dag_id + "-{{ run_id }}",
            deferrable=deferrable,
            stream_logs=True,
            poll_interval=1,
            retries=1,
            retry_delay=0,
        )

with DAG("talks", params={"go": ""}, **ARGUMENTS):
    AirExecutorSubmitOperator(
        task_id="submit",
        tasks=[{"id": "work", "bash": LINE.replace("sleep 1", "sleep 0.02") + "$AIR_EXECUTOR_OUTPUT"}],
        deferrable=True,
        stream_logs=True,
        poll_interval=0.02,
    )

with DAG("taskflow", **ARGUMENTS):

    @task
    def numbers() -> list[int]:
        return [1, 2]

    @task.air_executor(deferrable=True)
    def squares(number: int) -> list[dict[str, Any]]:
        line = f"echo $(({number} * {number})) > $AIR_EXECUTOR_OUTPUT"
        return [{"id": "square", "bash": line}, {"command": "echo", "args": ["{{ task.task_id }}"]}]

    @task
    def total(found: list[dict[str, int]]) -> int:
        return sum(one["square"] for one in found)

    total(squares.expand(number=numbers()))  # type: ignore[arg-type]

with DAG("mapped_jobs", params={"go": ""}, max_active_tasks=100, **ARGUMENTS):
    AirExecutorSubmitOperator.partial(task_id="submit", deferrable=True, poll_interval=1).expand(
        tasks=[[f"{UNTIL} sleep 0.2; done"]] * 3
    )

with DAG("many_jobs", params={"go": ""}, max_active_tasks=100, **ARGUMENTS):
    AirExecutorSubmitOperator.partial(task_id="submit", deferrable=True, poll_interval=1).expand(
        tasks=[[f"{UNTIL} sleep 0.2; done"]] * 50
    )


class DiesBeforeDeferral(AirExecutorSubmitOperator):
    """The worker of its first try ends by itself, as if by ``kill -9``, when the job has been submitted."""

    def _defer_unless_quick(self, context: Context, name: str, after_attempt: int) -> Any:
        if context["ti"].try_number == 1:
            os.kill(os.getppid(), signal.SIGKILL)  # its supervisor, which would report the end
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._defer_unless_quick(context, name, after_attempt)


with DAG("dies_before_deferral", params={"go": ""}, **ARGUMENTS):
    DiesBeforeDeferral(
        task_id="submit",
        tasks=[{"id": "work", "bash": LINE + "$AIR_EXECUTOR_OUTPUT"}],
        deferrable=True,
        poll_interval=1,
        retries=1,
        retry_delay=0,
    )

for dag_id, deferrable in (("times_out", True), ("times_out_in_the_worker", False)):
    with DAG(dag_id, **ARGUMENTS):
        AirExecutorSubmitOperator(
            task_id="by_execution_timeout",
            tasks=["sleep 600"],
            deferrable=deferrable,
            poll_interval=1,
            execution_timeout=timedelta(seconds=25),
        )
        AirExecutorSubmitOperator(
            task_id="by_timeout", tasks=["sleep 600"], deferrable=deferrable, poll_interval=1, timeout=25
        )

with DAG("fails_once", **ARGUMENTS):
    AirExecutorSubmitOperator(
        task_id="submit",
        tasks=[
            {"id": "download", "bash": "echo downloaded"},
            {"id": "report", "bash": "[ $AIR_EXECUTOR_ATTEMPT = 2 ] || exit 3", "dependencies": ["download"]},
            {"id": "send", "bash": "echo sent", "dependencies": ["report"]},
        ],
        deferrable=True,
        poll_interval=1,
        retries=1,
        retry_delay=0,
    )

UNFIT = {
    "nan": "[NaN]",
    "nul": '"\\u0000"',
    "class": '{"__classname__": "x"}',
    "old_class": '{"__type": "x", "__var": 1}',
}

with DAG("unfit_results", **ARGUMENTS):
    for kind, text in UNFIT.items():
        for way, how in (("waits", {}), ("defers", {"deferrable": True}), ("no_worker", {"start_from_trigger": True})):
            AirExecutorSubmitOperator(
                task_id=f"{way}_{kind}",
                tasks=[{"id": "report", "bash": f"sleep 2; echo '{text}' > $AIR_EXECUTOR_OUTPUT"}],
                poll_interval=1,
                retries=1,
                retry_delay=0,
                **how,
            )

with DAG("sensors", **ARGUMENTS):
    for name, line, seconds in (("too_long", "sleep 1000", 8), ("broken", "exit 3", 1000)):
        submit = AirExecutorSubmitOperator(
            task_id=f"submit_{name}", job_name=f"{name}-{{{{ run_id }}}}", tasks=[line], wait_for_completion=False
        )
        submit >> AirExecutorJobSensor(
            task_id=name,
            job_name=f"{name}-{{{{ run_id }}}}",
            deferrable=True,
            soft_fail=True,
            timeout=seconds,
            poke_interval=1,
        )

NAMED = "no-worker-{{ run_id }}"

with DAG("no_worker", **ARGUMENTS):
    AirExecutorSubmitOperator(
        task_id="submit",
        job_name=NAMED,
        tasks=[{"id": "work", "bash": "sleep 3; echo '\"done\"' > $AIR_EXECUTOR_OUTPUT"}],
        start_from_trigger=True,
        stream_logs=True,
        poll_interval=1,
        retries=1,
        retry_delay=0,
    ) >> AirExecutorJobSensor(task_id="wait", job_name=NAMED, start_from_trigger=True, timeout=1000)

with DAG("no_worker_fails", **ARGUMENTS):
    AirExecutorSubmitOperator(
        task_id="submit",
        tasks=[{"id": "work", "bash": "sleep 1; echo broken; exit 3"}],
        start_from_trigger=True,
        poll_interval=1,
        retries=1,
        retry_delay=0,
    )
    AirExecutorSubmitOperator(
        task_id="waits", tasks=["sleep 600"], start_from_trigger=True, execution_timeout=timedelta(seconds=25)
    )

FILES = os.path.join(os.path.dirname(os.path.realpath(__file__)), "files")

with DAG("templates", params={"seconds": 600, "engine": "local"}, template_searchpath=FILES, **ARGUMENTS):

    @task
    def pick() -> dict[str, Any]:
        """What other tasks take from here."""
        line = "printf '\"a whole task\"' > $AIR_EXECUTOR_OUTPUT"
        return {"word": "picked {{ ds }}", "env": {"OWN": "whole"}, "task": {"id": "whole", "bash": line}}

    picked: Any = pick()
    echo = 'printf \'"%s"\' "$1" > $AIR_EXECUTOR_OUTPUT'
    for task_id, how in (("waits", {}), ("defers", {"deferrable": True})):
        AirExecutorSubmitOperator(
            task_id=task_id,
            tasks=[
                {
                    "id": "args",
                    "command": "bash",
                    "args": ["-c", echo, "bash", picked["word"]],
                    "timeout": "{{ params.seconds }}",
                    "runner": "{{ params.engine }}",
                    "retries": "{{ 1 }}",
                },
                {
                    "id": "env",
                    "command": "bash",
                    "args": ["-c", echo.replace("$1", "$OWN $ALL $AIRFLOW_HOME $PWD"), "bash"],
                    "env": picked["env"],
                    "cwd": "/{{ 'tmp' }}",
                },
                picked["task"],
                "report.sh",
            ],
            env={"ALL": "{{ dag.dag_id }}"},
            append_env=False,
            timeout="{{ params.seconds }}",
            priority="{{ 3 }}",
            poll_interval=1,
            **how,
        )
    AirExecutorSubmitOperator(
        task_id="no_worker", tasks="job.yaml", env={"ALL": "{{ dag.dag_id }}"}, start_from_trigger=True, poll_interval=1
    )
    AirExecutorSubmitOperator(task_id="nothing", tasks="{{ [] | tojson }}", on_empty="skip")
    AirExecutorSubmitOperator.partial(task_id="mapped", poll_interval=1).expand(tasks=[["report.sh"], ["report.sh"]])

    @task.air_executor(poll_interval=1)
    def decorated() -> str:
        """The name of a file with tasks."""
        return "job.yaml"

    decorated()

ENDS = Asset("ends", watchers=[AssetWatcher(name="ends", trigger=AirExecutorJobEventTrigger(job_name="watched-*"))])
REPORTS = Asset(
    "reports",
    watchers=[
        AssetWatcher(name="reports", trigger=AirExecutorJobEventTrigger(outlet="file:///report", states=["completed"]))
    ],
)

for asset in (ENDS, REPORTS):
    with DAG(f"reacts_to_{asset.name}", start_date=ARGUMENTS["start_date"], schedule=[asset], max_active_runs=16):

        @task(inlets=[asset])
        def receive(triggering_asset_events: Any = None) -> list[str]:
            """What has happened: the names of the jobs that have ended."""
            return [
                f"{event.extra['payload']['job_name']} {event.extra['payload']['state']}"
                for events in triggering_asset_events.values()
                for event in events
            ]

        receive()

if ExceptionRetryPolicy is not None:
    with DAG("policy", **ARGUMENTS):
        AirExecutorSubmitOperator(
            task_id="submit",
            tasks=[{"command": "there-is-no-such-command"}],
            retries=3,
            retry_delay=0,
            retry_policy=ExceptionRetryPolicy(
                rules=[
                    RetryRule(
                        exception="airflow_provider_air_executor.exceptions.JobInvalidError", action=RetryAction.FAIL
                    )
                ]
            ),
        )
