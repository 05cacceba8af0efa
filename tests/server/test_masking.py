"""Records without secrets."""

from __future__ import annotations

from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, Task, TaskStatus
from airflow_provider_air_executor.server.masking import shown_attempt, shown_job, shown_task, without_values

SECRET = "hunter22"
MASK = Mask([SECRET])


def test_all_texts_of_a_task_are_masked() -> None:
    task = Task(
        id="t",
        command=f"/bin/{SECRET}",
        args=("-c", f"echo {SECRET}"),
        env={"A": SECRET, "B": "b"},
        cwd=f"/tmp/{SECRET}",
        error=f"{SECRET} is wrong",
        where=f"on {SECRET}",
        dependencies=("a",),
        kubernetes={"image": "x", "env": [{"name": "A", "value": SECRET}], SECRET: 1},
    )
    shown = shown_task(task, MASK)
    assert SECRET not in shown.model_dump_json()
    assert (shown.id, shown.dependencies, shown.env) == ("t", ("a",), {"A": "***", "B": "b"})
    assert shown.model_extra == {"kubernetes": {"image": "x", "env": [{"name": "A", "value": "***"}], "***": 1}}
    assert SECRET in task.model_dump_json(), "it is a copy"


def test_the_values_of_variables_are_hidden_from_those_who_only_read() -> None:
    pod = {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": SECRET}, SECRET]}]}, "env": SECRET}
    task = Task(id="t", command="true", args=("x",), env={"A": SECRET, "B": ""}, kubernetes=pod)
    shown = without_values(task)
    assert SECRET not in shown.model_dump_json()
    assert (shown.command, shown.args, shown.env) == ("true", ("x",), {"A": "***", "B": "***"})
    [container] = (shown.model_extra or {})["kubernetes"]["spec"]["containers"]
    assert container == {"name": "c", "env": [{"name": "A", "value": "***"}, "***"]}
    assert SECRET in task.model_dump_json(), "it is a copy"
    assert without_values(Task(command="x")).env is None


def test_all_texts_of_a_job_are_masked() -> None:
    job = Job(
        id="a-1", name="a", labels={"x": SECRET, SECRET: "y"}, outlets=(f"s3://{SECRET}",), error=SECRET, more=[SECRET]
    )
    shown = shown_job(job, MASK)
    assert SECRET not in shown.model_dump_json()
    assert (shown.labels, shown.outlets, shown.error) == ({"x": "***"}, ("s3://***",), "***")
    assert shown.model_extra == {"more": ["***"]}


def test_the_error_of_an_attempt_is_masked() -> None:
    attempt = AttemptRecord("t", 1, TaskStatus.FAILED, error=f"no {SECRET}")
    assert shown_attempt(attempt, MASK).error == "no ***"
    assert shown_attempt(attempt._replace(error=None), MASK).error is None


def test_without_secrets_a_record_is_itself() -> None:
    task, job = Task(command="x"), Job(id="a-1", name="a")
    assert shown_task(task, Mask()) is task
    assert shown_job(job, Mask()) is job
