"""The operator: what it refuses when the DAG is parsed, its job's name, and how it waits."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferralError, TaskDeferred
from structlog.testing import capture_logs

from airflow_provider_air_executor import operators
from airflow_provider_air_executor.exceptions import (
    InvalidJobError,
    JobExistsError,
    JobFailedError,
    JobInvalidError,
    JobLostError,
    JobNotFoundError,
    JobRemovedError,
    JobTimeoutError,
    OutputError,
)
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import ALL_AT_ONCE, SubmittedBy, Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from tests.support.contexts import TaskInstance, context
from tests.support.jobs import remove as remove_job
from tests.support.waiting import PATIENCE, until, wait_until


def text_of(line: Any) -> str:
    """A line that structlog has captured."""
    return str(line["event"] % line.get("positional_args", ()))


def logged(tested: AirExecutorSubmitOperator) -> list[tuple[str, str]]:
    """The levels and the lines that an operator logs."""
    with capture_logs() as captured:
        tested.execute(context())
    return [(line["log_level"], text_of(line)) for line in captured]


def operator(tasks: Any, **kwargs: Any) -> AirExecutorSubmitOperator:
    return AirExecutorSubmitOperator(task_id="t", tasks=tasks, poll_interval=0.1, **kwargs)


class TestParsing:
    @pytest.mark.parametrize(
        ("tasks", "says"),
        [
            ([], "the list is empty"),
            ("echo hi", "must be a list of tasks"),
            (None, "must be a list of tasks"),
            ({"command": "echo"}, "must be a list of tasks"),
            (7, "must be a list of tasks"),
            ([7], "tasks[0]"),
            ([None], "tasks[0]"),
            ([{"command": "a", "id": "x"}, {"command": "b", "id": "x"}], "another task"),
            ([{"command": "a", "dependencies": ["nope"]}], "no task 'nope'"),
            ([{"command": "a", "id": "x", "dependencies": ["x"]}], "cycle"),
            ([{"command": ["a", "b"]}], "tasks[0].command"),
            ([{"cmd": "a"}], "command"),
            ([{"command": "{{ ds }}", "args": [None]}], "tasks[0].args[0]"),
        ],
    )
    def test_bad_tasks_fail_when_the_dag_is_parsed(self, tasks: Any, says: str) -> None:
        with pytest.raises(InvalidJobError) as refused:
            operator(tasks)
        assert says in str(refused.value)

    @pytest.mark.parametrize(
        "tasks",
        [
            "{{ params.tasks }}",
            ["echo {{ ds }}"],
            [{"id": "x-{{ ds }}", "command": "a"}, {"command": "b", "dependencies": ["x-{{ ds }}"]}],
            [Task(command="echo", args=["{{ run_id }}"])],
            [{"bash": "true", "slurm": {"tasks_per_submission": "{{ params.n }}"}}],
        ],
    )
    def test_what_a_template_decides_is_checked_later(self, tasks: Any) -> None:
        operator(tasks)

    @pytest.mark.parametrize("bad", [{"on_retry": "failed"}, {"on_kill": True}])
    def test_words_that_do_not_exist(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidJobError, match=f"{next(iter(bad))}: must be one of"):
            operator(["true"], **bad)

    @pytest.mark.parametrize("bad", [{"poll_interval": 0}, {"timeout": 0}, {"timeout": timedelta(seconds=-1)}])
    def test_bad_numbers(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidJobError, match=next(iter(bad))):
            AirExecutorSubmitOperator(task_id="t", tasks=["true"], **bad)

    def test_templates_are_rendered_in_all_forms_of_a_task(self) -> None:
        with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC)):
            tested = operator(
                [Task(command="echo", args=["{{ word }}"]), {"bash": "echo {{ word }}"}, "echo {{ word }}"],
                job_name="j_{{ word }}",
            )
        tested.render_template_fields({"word": "hi"})
        assert json.dumps(tested.tasks).count("hi") == 3
        assert tested.job_name == "j_hi"


@pytest.mark.embedded
class TestNames:
    def test_the_default_is_unique_for_the_task_instance_and_repeatable(self, store: JobStore) -> None:
        tested = operator(["true"], wait_for_completion=False)
        same = [tested.execute(context()), tested.execute(context(try_number=2))]
        other = [
            tested.execute(context(**change))
            for change in ({"dag_id": "d2"}, {"run_id": "r2"}, {"task_id": "t2"}, {"map_index": 0}, {"map_index": 1})
        ]
        assert len(set(same)) == 1
        assert len({*same, *other}) == 6
        assert same[0].startswith("d__t__manual__1_00_00-")

    def test_names_that_would_meet_are_kept_apart(self, store: JobStore) -> None:
        tested = operator(["true"], wait_for_completion=False)
        names = {
            tested.execute(context(dag_id="a__b", task_id="c")),
            tested.execute(context(dag_id="a", task_id="b__c")),
        }
        assert len(names) == 2

    def test_a_given_name_is_mapped_to_a_valid_one(self, store: JobStore) -> None:
        tested = operator(["true"], wait_for_completion=False, job_name="job of 2026-11-22T10:00:00+00:00")
        assert store.get_job(tested.execute(context())).name.startswith("job_of_2026-11-22T10_00_00_00_00-")


class TestWaiting:
    @pytest.mark.embedded
    def test_name_and_id_are_in_xcom_also_when_the_job_fails(self, store: JobStore) -> None:
        given = context()
        with pytest.raises(JobFailedError):
            operator(["exit 1"], job_name="j").execute(given)
        pushed = given["ti"].pushed
        assert (pushed["job_name"], pushed["job_id"]) == ("j", store.get_job("j").id)

    @pytest.mark.embedded
    def test_it_returns_what_the_tasks_have_written(self, store: JobStore) -> None:
        tasks = [
            {"id": "a", "bash": """echo '{"rows": [1, null]}' > $AIR_EXECUTOR_OUTPUT"""},
            {"id": "b", "bash": "[ $AIR_EXECUTOR_ATTEMPT = 2 ] && echo 2 > $AIR_EXECUTOR_OUTPUT", "retries": 1},
            {"id": "silent", "command": "true"},
        ]
        assert operator(tasks, job_name="j").execute(context()) == {"a": {"rows": [1, None]}, "b": 2}

    @pytest.mark.embedded
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("echo '{' > $AIR_EXECUTOR_OUTPUT", "is not JSON"),
            ("head -c 1000003 /dev/zero | tr '\\0' 1 > $AIR_EXECUTOR_OUTPUT", "longer than 1000000 bytes"),
            ("ln -s /etc/hostname $AIR_EXECUTOR_OUTPUT", "not a regular file"),
        ],
    )
    def test_a_result_that_cannot_be_taken(self, store: JobStore, line: str, says: str) -> None:
        with pytest.raises(OutputError, match=says):
            operator([line], job_name="j").execute(context())

    @pytest.mark.embedded
    def test_results_that_are_too_long_together(self, store: JobStore) -> None:
        line = "printf '\"%0900000d\"' 1 > $AIR_EXECUTOR_OUTPUT"
        with pytest.raises(OutputError, match="too long together"):
            operator([line] * 6).execute(context())

    @pytest.mark.embedded
    def test_what_has_completed_of_a_failed_job_is_not_lost(self, store: JobStore) -> None:
        given = context()
        tasks = [{"id": "good", "bash": "echo 7 > $AIR_EXECUTOR_OUTPUT"}, {"id": "bad", "bash": "exit 1"}]
        with pytest.raises(JobFailedError):
            operator(tasks).execute(given)
        assert given["ti"].pushed["partial_results"] == {"good": 7}

    @pytest.mark.embedded
    @pytest.mark.parametrize(
        ("codes", "lines", "error"),
        [
            (99, ["exit 99"], AirflowSkipException),
            ((98, 99), ["exit 99", "exit 98"], AirflowSkipException),
            (99, ["exit 99", "exit 1"], JobFailedError),
            ((), ["exit 99"], JobFailedError),
        ],
    )
    def test_an_exit_code_that_means_skipped(
        self, store: JobStore, codes: Any, lines: list[str], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            operator([*lines, "true"], skip_on_exit_code=codes).execute(context())

    @pytest.mark.parametrize(
        "arguments",
        [
            {"skip_on_exit_code": "99"},
            {"skip_on_exit_code": [99, "1"]},
            {"skip_on_exit_code": True},
            {"max_parallel_tasks": 0},
            {"max_parallel_tasks": "2"},
            {"priority": "high"},
            {"labels": {"a": 1}},
        ],
    )
    def test_an_argument_that_would_be_misunderstood_is_refused_when_the_dag_is_parsed(
        self, arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidJobError, match=next(iter(arguments))):
            operator(["true"], **arguments)

    def test_waiting_reports_that_no_manager_runs(
        self, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", f"air-executor://?base_path={quote(str(tmp_path), safe='')}")
        tested = operator(["true"], job_name="j", air_executor_conn_id="elsewhere", timeout=0.5)
        with capture_logs() as captured, pytest.raises(JobTimeoutError):
            tested.execute(context())
        lines = [text_of(line) for line in captured]
        said = "0 of 1 task done (no manager is running: air-executor manager --base-path"
        assert any(said in line for line in lines)

    @pytest.mark.embedded
    def test_the_output_of_its_tasks_appears_while_they_run(self, store: JobStore) -> None:
        tasks = [{"id": "talks", "bash": "echo one; sleep 0.5; printf two"}]
        lines = [line for _, line in logged(operator(tasks, job_name="j"))]
        assert [line for line in lines if "|" in line] == ["talks | one", "talks | two"]
        assert lines.index("talks | one") < lines.index("job j: completed")
        header = next(index for index, line in enumerate(lines) if line.split()[:2] == ["task", "status"])
        assert lines[header + 1].split()[:3] == ["talks", "completed", "1"]

    @pytest.mark.embedded
    @pytest.mark.parametrize("streamed", [True, False])
    def test_what_it_prints_keeps_its_level(self, store: JobStore, streamed: bool) -> None:
        line = """echo plain; echo 'ERROR: full'; echo '[12:00] WARNING low'; echo '{"level": "fatal"}'; echo DEBUG x"""
        lines = logged(operator([{"id": "t", "bash": line}], job_name="j", stream_logs=streamed))
        found = [(level, text.partition(" | ")[2]) for level, text in lines if " | " in text]
        assert found == [
            ("info", "plain"),
            ("error", "ERROR: full"),
            ("warning", "[12:00] WARNING low"),
            ("critical", '{"level": "fatal"}'),
            ("info", "DEBUG x"),  # else it would be missing, since Airflow's level is INFO
        ]

    @pytest.mark.embedded
    def test_of_much_output_the_beginning_and_the_end_appear(
        self, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STREAM_LIMIT", "100000")
        lines = [line for _, line in logged(operator([{"id": "t", "bash": "seq 1 99999"}], job_name="j"))]
        assert "t | 1" in lines
        (cut,) = (number for number, line in enumerate(lines) if "no more output of this job is shown here" in line)
        assert cut < 50_000
        assert [line for line in lines[cut:] if line.endswith("| 99999")] == ["  t | 99999"]

    @pytest.mark.embedded
    def test_the_output_of_a_deferred_task_appears_once(self, store: JobStore, tmp_path: Path) -> None:
        line = f"echo one; {until(tmp_path / 'go')}; echo ERROR two"
        tested = operator([{"id": "t", "bash": line}], job_name="j", deferrable=True)
        with pytest.raises(TaskDeferred) as deferred:
            tested.execute(context())
        (tmp_path / "go").touch()

        async def fired() -> list[Any]:
            return [event.payload async for event in deferred.value.trigger.run()]

        with capture_logs() as captured:
            (event,) = asyncio.run(fired())
            tested.execute_complete(context(), event)
        found = [(line["log_level"], text_of(line)) for line in captured if "|" in text_of(line)]
        assert found == [("info", "t | one"), ("error", "t | ERROR two")]

    @pytest.mark.embedded
    def test_the_execution_timeout_cancels_the_job(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow.sdk.exceptions import AirflowTaskTimeout
        from airflow.sdk.execution_time.timeout import timeout

        tested = operator(["sleep 1000"], job_name="j", on_kill="leave")
        wait_for_job = tested.hook.wait_for_job

        def wait(*args: Any, **kwargs: Any) -> Any:  # the time must not be over before there is a job
            with timeout(1):
                return wait_for_job(*args, **kwargs)

        monkeypatch.setattr(tested.hook, "wait_for_job", wait)
        with pytest.raises(AirflowTaskTimeout):
            tested.execute(context())
        wait_until(lambda: store.get_job("j").reason == "cancelled", what="it is cancelled")

    @pytest.mark.embedded
    @pytest.mark.parametrize(("on_kill", "state"), [("cancel", "failed"), ("leave", "working")])
    def test_a_worker_that_is_killed(self, store: JobStore, on_kill: Any, state: str) -> None:
        class KilledError(Exception):
            pass

        tested = operator(["sleep 1000"], job_name="j", on_kill=on_kill)
        main = threading.main_thread().ident

        def kill(*_: object) -> None:
            tested.on_kill()
            raise KilledError

        def kill_while_it_waits() -> None:
            wait_until(lambda: tested._waits_for and store.get_job("j").state == "working", what="it waits")
            signal.pthread_kill(main, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, kill)
        killer = threading.Thread(target=kill_while_it_waits)
        killer.start()
        try:
            with pytest.raises(KilledError):
                tested.execute(context())
        finally:
            killer.join()
            signal.signal(signal.SIGUSR1, before)
        wait_until(lambda: store.get_job("j").state == state, what=f"it is {state}")

    @pytest.mark.embedded
    @pytest.mark.parametrize(
        ("task", "kind"),
        [
            ("exit 3", JobFailedError),
            ({"command": "/no/such/command"}, JobInvalidError),
            ("kill -9 $PPID", JobLostError),
        ],
    )
    def test_kinds_of_failure(self, store: JobStore, task: Any, kind: type[JobFailedError]) -> None:
        with pytest.raises(JobFailedError) as failed:
            operator([task], job_name="j").execute(context())
        assert type(failed.value) is kind

    @pytest.mark.embedded
    def test_a_failure_says_what_failed_and_shows_the_end_of_its_log(self, store: JobStore) -> None:
        tasks = [
            {"id": "break", "bash": "echo the disk is on fire >&2; exit 3"},
            {"command": "true", "dependencies": ["break"]},
        ]
        with pytest.raises(JobFailedError) as failed:
            operator(tasks, job_name="j").execute(context())
        assert "task break: exit code 3" in str(failed.value)
        assert "break | the disk is on fire" in str(failed.value)
        assert str(store.paths("j").logs) in str(failed.value)

    @pytest.mark.embedded
    def test_timeout_cancels_the_job(self, store: JobStore) -> None:
        with pytest.raises(JobTimeoutError, match="it is cancelled"):
            operator(["sleep 1000"], job_name="j", timeout=0.3).execute(context())
        wait_until(lambda: store.get_job("j").reason == "cancelled", what="it is cancelled")

    def test_bad_tasks_of_another_task_write_nothing(self, store: JobStore) -> None:
        tested = operator("{{ x }}")
        for tasks, says in (
            ("[", "JSON list"),
            ("[]", "is empty"),
            ([1], "tasks[0]"),
            ({"command": "x"}, "must be a list"),
        ):
            tested.tasks = tasks
            with pytest.raises(InvalidJobError) as refused:
                tested.execute(context())
            assert says in str(refused.value)
        assert store.job_names() == []

    @pytest.mark.embedded
    def test_independent_tasks_run_side_by_side(self, store: JobStore) -> None:
        operator(["true"] * 3, job_name="j").execute(context())
        assert store.get_job("j").max_parallel_tasks == ALL_AT_ONCE

    @pytest.mark.embedded
    def test_who_submitted_it_is_recorded(self, store: JobStore) -> None:
        operator(["true"], job_name="j", labels={"team": "a"}, priority=3).execute(context(map_index=2))
        job = store.get_job("j")
        assert str(job.submitted_by) == "task t[2] of DAG d, run manual__1+00:00"
        assert (job.labels, job.priority) == ({"team": "a"}, 3)


@pytest.mark.embedded
class TestDeferring:
    def test_it_defers_with_a_deadline_and_a_backstop_behind_it(self, store: JobStore) -> None:
        given = context()
        with pytest.raises(TaskDeferred) as deferred:
            operator(["sleep 1000"], job_name="j", deferrable=True, timeout=30).execute(given)
        arguments = deferred.value.trigger.serialize()[1]
        assert given["ti"].pushed["job_name"] == "j"
        assert arguments["base_path"] == str(store.base_path)
        assert arguments["embedded"] is True
        assert arguments["owner"]["task_id"] == "t"
        assert deferred.value.timeout == timedelta(seconds=90)
        assert arguments["deadline"] - datetime.now(tz=UTC).timestamp() < 31

    def test_the_execution_timeout_counts_while_deferred_too(self, store: JobStore) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            operator(
                ["sleep 1000"], job_name="j", deferrable=True, timeout=30, execution_timeout=timedelta(seconds=10)
            ).execute(context())
        assert deferred.value.trigger.serialize()[1]["deadline"] - datetime.now(tz=UTC).timestamp() < 11

    def test_a_quick_job_is_not_worth_it(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(operators, "_QUICK_SECONDS", 60)  # a machine may be slow
        assert operator(["true"], job_name="j", deferrable=True).execute(context()) == {}

    def test_events(self, store: JobStore) -> None:
        tested = operator(["true"], job_name="j")
        tested.execute(context())
        event = {"job_name": "j", "message": "", "status": "completed"}
        assert tested.execute_complete(context(), event) == {}
        with pytest.raises(JobNotFoundError):
            tested.execute_complete(context(), {**event, "status": "not_found"})
        for unknown in (None, {}, {**event, "status": "fine"}, {"status": "completed"}):
            with pytest.raises(ValueError, match="not known"):
                tested.execute_complete(context(), unknown)

    def test_a_job_that_was_removed_before_its_end_was_read(self, store: JobStore) -> None:
        tested = operator(["true"], job_name="j")
        tested.execute(context())
        store.delete("j")
        for status in ("completed", "not_found"):
            with pytest.raises(JobRemovedError) as failed:
                tested.execute_complete(context(), {"job_name": "j", "message": "", "status": status})
            assert f"job 'j' was removed from {store.base_path} after it had completed at 20" in str(failed.value)
            assert "keep_jobs, keep_days" in str(failed.value)
        assert operator(["true"], job_name="j").execute(context(try_number=2)) == {}

    def test_a_job_whose_files_somebody_removed(self, store: JobStore) -> None:
        tested = operator([{"id": "t", "bash": "sleep 1000"}], job_name="j")

        def remove() -> None:
            wait_until(lambda: tested._waits_for and store.get_job("j").state == "working", what="it waits")
            remove_job(store, "j")

        remover = threading.Thread(target=remove)
        remover.start()
        try:
            with pytest.raises(JobNotFoundError, match="there is no job 'j' in"):
                tested.execute(context())
        finally:
            remover.join()

    def test_an_event_is_not_believed_where_the_file_says_otherwise(self, store: JobStore) -> None:
        tested = operator(["exit 1"], job_name="j", wait_for_completion=False)
        tested.execute(context())
        wait_until(lambda: store.get_job("j").state == "failed", what="it has failed")
        with pytest.raises(JobFailedError):
            tested.execute_complete(context(), {"job_name": "j", "message": "", "status": "completed"})

    def test_timeout_event_cancels(self, store: JobStore) -> None:
        tested = operator(["sleep 1000"], job_name="j", wait_for_completion=False, timeout=1000)
        tested.execute(context())
        with pytest.raises(JobTimeoutError):
            tested.execute_complete(context(), {"job_name": "j", "message": "", "status": "timeout"})
        wait_until(lambda: store.get_job("j").reason == "cancelled", what="it is cancelled")

    @pytest.mark.parametrize(
        ("reason", "try_number", "is_cancelled"),
        [
            (TriggerFailureReason.TRIGGER_TIMEOUT, 1, True),  # the triggerer was away
            (TriggerFailureReason.TRIGGER_FAILURE, 1, False),  # the second try takes it up
            (TriggerFailureReason.TRIGGER_FAILURE, 2, True),  # nobody would
        ],
    )
    def test_airflow_gives_the_deferral_up(
        self, store: JobStore, reason: TriggerFailureReason, try_number: int, is_cancelled: bool
    ) -> None:
        given = context(max_tries=1, try_number=try_number)
        tested = operator(["sleep 1000"], job_name="j", deferrable=True)
        with pytest.raises(TaskDeferred):
            tested.execute(given)
        with pytest.raises(JobTimeoutError if is_cancelled else TaskDeferralError):
            tested.resume_execution("__fail__", {"error": reason}, given)
        if is_cancelled:
            assert tested.hook.wait_for_job("j", timeout=PATIENCE).reason == "cancelled"
        else:
            assert not inbox.requests(store)
            inbox.cancel(store, "j")

    def test_the_manager_kills_the_job_by_itself_long_after_its_timeout(self, store: JobStore) -> None:
        operator(["true"], job_name="j", timeout=100).execute(context())
        assert store.get_job("j").timeout == 160


class TestStartingInTheTriggerer:
    def test_the_trigger_gets_all_arguments(self, store: JobStore) -> None:
        report = Asset(uri="file:///report", name="report")
        tested = operator(
            ["echo {{ ds }}"], job_name="x-{{ run_id }}", start_from_trigger=True, timeout=60, outlets=[report]
        )
        if not tested.start_from_trigger:
            pytest.skip("before Airflow 3.3 a worker begins")
        assert tested.start_trigger_args is not None
        arguments = tested.start_trigger_args.trigger_kwargs or {}
        assert (arguments["tasks"], arguments["job_name"]) == (["echo {{ ds }}"], "x-{{ run_id }}")
        assert (arguments["timeout"], arguments["spec"]["outlets"]) == (60, ["file:///report"])
        assert arguments["end_from_trigger"] is False  # a worker reports outlets

    @pytest.mark.parametrize(
        ("tasks", "more"),
        [
            ("{{ ti.xcom_pull('other') }}", {}),  # what another task returns
            (["true"], {"wait_for_completion": False}),
        ],
    )
    def test_it_starts_in_a_worker_where_it_must(self, store: JobStore, tasks: Any, more: dict[str, Any]) -> None:
        tested = operator(tasks, start_from_trigger=True, **more)
        assert (tested.start_from_trigger, tested.deferrable) == (False, True)

    @pytest.mark.embedded
    def test_a_worker_goes_on_where_the_triggerer_could_not(self, store: JobStore) -> None:
        given = context()
        event = {"status": "not_submitted", "job_name": "j", "message": ""}
        tested = operator([{"id": "a", "bash": "echo 7 > $AIR_EXECUTOR_OUTPUT"}], job_name="j")
        assert tested.execute_complete(given, event) == {"a": 7}
        assert given["ti"].pushed["job_name"] == "j"


@pytest.mark.embedded
class TestTriedAgain:
    def test_it_reattaches_its_own_job(self, store: JobStore, tmp_path: Any) -> None:
        line = f"echo x >> {tmp_path}/out; sleep 0.5"
        operator([line], job_name="j", wait_for_completion=False).execute(context())
        assert operator([line], job_name="j").execute(context(try_number=2)) == {}
        assert (tmp_path / "out").read_text() == "x\n"

    def test_it_lets_what_failed_run_again(self, store: JobStore, tmp_path: Any) -> None:
        tasks = [f"echo x >> {tmp_path}/out", f"[ -e {tmp_path}/flag ]"]
        with pytest.raises(JobFailedError):
            operator(tasks, job_name="j").execute(context())
        (tmp_path / "flag").touch()
        assert operator(tasks, job_name="j").execute(context(try_number=2)) == {}
        assert (tmp_path / "out").read_text() == "x\n"

    def test_it_starts_over_if_it_is_told_to(self, store: JobStore, tmp_path: Any) -> None:
        tasks = [f"echo x >> {tmp_path}/out", f"[ -e {tmp_path}/flag ]"]
        with pytest.raises(JobFailedError):
            operator(tasks, job_name="j").execute(context())
        (tmp_path / "flag").touch()
        operator(tasks, job_name="j", on_retry="all").execute(context(try_number=2))
        assert (tmp_path / "out").read_text() == "x\nx\n"

    def test_outputs_are_kept_when_what_failed_runs_again(self, store: JobStore, tmp_path: Any) -> None:
        tasks = ["echo 1 > $AIR_EXECUTOR_OUTPUT", f"[ -e {tmp_path}/flag ]"]
        with pytest.raises(JobFailedError):
            operator(tasks, job_name="j").execute(context())
        (tmp_path / "flag").touch()
        assert operator(tasks, job_name="j").execute(context(try_number=2)) == {"task-1": 1}

    def test_when_it_was_cleared_everything_runs_anew(self, store: JobStore, tmp_path: Any) -> None:
        tasks = [f"echo x >> {tmp_path}/out"]
        operator(tasks, job_name="j").execute(context())
        operator(tasks, job_name="j").execute(context(try_number=2, max_tries=1))
        assert (tmp_path / "out").read_text() == "x\nx\n"

    def test_a_job_that_may_not_be_removed_does_not_block_the_next_run(
        self, store: JobStore, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file of another user, say, in the directory of the job that is replaced."""
        tasks = [f"echo x >> {tmp_path}/out"]
        operator(tasks, job_name="j").execute(context())
        forbidden = (None, PermissionError(errno.EPERM, "Operation not permitted"), None)
        monkeypatch.setattr(shutil, "rmtree", lambda path, onerror: onerror(None, path, forbidden))
        operator(tasks, job_name="j").execute(context(try_number=2, max_tries=1))
        assert (tmp_path / "out").read_text() == "x\nx\n"
        (left,) = store.jobs_path.glob(".deleted-j-*")
        assert str(left) in str(store.remove_abandoned()[0])

    def test_an_earlier_try_cannot_cancel_any_more(self, store: JobStore) -> None:
        """A trigger of the first try that has stood still in a triggerer, say."""
        tested = operator(["sleep 1000"], job_name="j", deferrable=True)
        first, second = context(max_tries=1), context(max_tries=1, try_number=2)
        for given in (first, second):
            with pytest.raises(TaskDeferred) as deferred:
                tested.execute(given)
        owners = [
            SubmittedBy(dag_id="d", run_id="manual__1+00:00", task_id="t", try_number=n, max_tries=1) for n in (1, 2)
        ]
        assert deferred.value.trigger.owner == owners[1].model_dump(mode="json")
        assert not inbox.cancel(store, "j", owners[0])
        assert inbox.cancel(store, "j", owners[1])
        assert tested.hook.wait_for_job("j", timeout=PATIENCE).reason == "cancelled"

    def test_the_job_of_somebody_else_is_not_touched(self, store: JobStore) -> None:
        operator(["true"], job_name="j").execute(context())
        with pytest.raises(JobExistsError, match="DAG d, run manual"):
            operator(["true"], job_name="j").execute(context(run_id="another"))


def test_the_task_instance_of_the_tests_has_what_airflows_has() -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    fields = {*RuntimeTaskInstance.model_fields, *dir(RuntimeTaskInstance)}
    assert set(vars(TaskInstance())) - {"pushed"} <= fields
