"""Jobs are submitted and changed through the server, and repeated requests have no other effect."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading

import httpx
import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import Managers
from tests.support.servers import Servers, ServerThread
from tests.support.waiting import until, wait_until

JOB = {"name": "a", "tasks": ["echo one", {"id": "b", "bash": "echo two"}], "key": "k1"}
OWNER = {"dag_id": "d", "run_id": "r", "task_id": "t", "try_number": 1, "max_tries": 0}


def code(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert found["status"] == response.status_code
    return found["type"].removeprefix("urn:air-executor:")


def ended(store: JobStore, name: str) -> bool:
    return store.get_job(name).state.is_terminal


class TestSubmit:
    def test_a_job_is_submitted_and_runs(self, client, store, manager):
        response = client.post("/jobs", json=JOB)
        assert response.status_code == 201
        assert response.json()["name"] == "a"
        wait_until(lambda: ended(store, "a"), what="it ends")
        assert store.get_job("a").state == "completed"
        assert [task.id for task in store.get_tasks("a")] == ["task-1", "b"]

    def test_a_repeated_request_gets_the_first_answer(self, client, store):
        first = client.post("/jobs", json=JOB)
        again = client.post("/jobs", json=JOB)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json()
        assert store.job_names() == ["a"]

    def test_the_order_of_the_fields_does_not_matter(self, client):
        client.post("/jobs", json=JOB)
        assert client.post("/jobs", json=dict(reversed(JOB.items()))).status_code == 200

    @pytest.mark.parametrize("other", [{"tasks": ["echo three"]}, {"key": "k2"}, {"spec": {"priority": 1}}])
    def test_another_job_of_the_name_is_refused(self, client, other):
        client.post("/jobs", json=JOB)
        response = client.post("/jobs", json={**JOB, **other})
        assert (response.status_code, code(response)) == (409, "job-exists")
        assert response.json()["name"] == "a"

    def test_a_job_that_no_client_has_submitted_is_another_one(self, client, store):
        store.submit("a", ["echo one"])
        assert client.post("/jobs", json=JOB).status_code == 409

    def test_the_owner_of_the_name_is_named(self, client):
        client.post("/jobs", json={**JOB, "submitted_by": OWNER})
        response = client.post("/jobs", json={**JOB, "key": "k2", "submitted_by": {**OWNER, "run_id": "r2"}})
        assert "task t of DAG d, run r" in response.json()["owner"]

    def test_the_name_of_the_token_is_kept_with_the_owner(self, client, store):
        client.post("/jobs", json={**JOB, "submitted_by": {**OWNER, "token": "somebody"}})
        owner = store.get_job("a").submitted_by
        assert owner is not None
        assert (owner.dag_id, owner.token) == ("d", "unix")

    def test_a_request_is_known_after_a_restart_of_the_server(self, servers: Servers, store):
        process = servers.start()
        with servers.client() as client:
            first = client.post("/jobs", json=JOB).json()
        process.kill()
        process.wait()
        servers.start()
        with servers.client() as client:
            again = client.post("/jobs", json=JOB)
        assert (again.status_code, again.json()["id"]) == (200, first["id"])

    def test_a_request_whose_answer_is_lost_is_repeated(self, server: ServerThread, store):
        """The connection is cut as soon as the request is sent: the job is there, and who asks again gets it."""
        body = json.dumps(JOB).encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(server.socket)
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
        wait_until(lambda: store.job_names() == ["a"], what="it is submitted")
        with server.client() as client:
            again = client.post("/jobs", json=JOB)
        assert again.status_code == 200
        assert store.job_names() == ["a"]

    def test_many_identical_requests_at_once_make_one_job(self, server: ServerThread, store):
        codes = []

        def submit() -> None:
            with server.client() as client:
                codes.append(client.post("/jobs", json=JOB).status_code)

        threads = [threading.Thread(target=submit) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200] * 19 + [201]

    def test_attached_files_and_secrets_are_for_the_owner_alone(self, client, store):
        given = {**JOB, "attached": {"input.bin": "AAH/"}, "secrets": ["hunter22"]}
        assert client.post("/jobs", json=given).status_code == 201
        directory = store.paths("a").directory
        assert (directory / "input.bin").read_bytes() == b"\x00\x01\xff"
        for name in ("input.bin", "secrets.jsonl", "submission.json"):
            assert stat.S_IMODE(os.stat(directory / name).st_mode) == 0o600

    @pytest.mark.parametrize(
        "name", ["state.json", "../x", "/etc/x", "secrets.jsonl", "submission.json", "added.jsonl", ".waiter", ""]
    )
    def test_an_attached_file_cannot_take_the_place_of_another(self, client, store, name):
        response = client.post("/jobs", json={**JOB, "attached": {name: ""}})
        assert (response.status_code, code(response)) == (422, "invalid-job")
        assert store.job_names() == []

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"name": "../x"}, "job name"),
            ({"tasks": []}, "tasks"),
            ({"tasks": [{"comand": "x"}]}, "tasks[0].comand"),
            ({"tasks": "echo"}, "tasks"),
            ({"spec": {"labels": 5}}, "spec.labels"),
            ({"spec": {"nothing": 5}}, "spec.nothing"),
            ({"spec": {"timeout": "soon"}}, "timeout"),
            ({"other": 1}, "other"),
            ({"attached": {"x": "!"}}, "attached.x"),
            ({"submitted_by": {}}, "submitted_by.dag_id"),
        ],
    )
    def test_what_is_not_valid_is_named(self, client, store, given, said):
        response = client.post("/jobs", json={**JOB, **given})
        assert (response.status_code, code(response)) == (422, "invalid-job")
        assert said in response.json()["detail"]
        assert store.job_names() == []

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"name": "\\ud800", "tasks": []}', b"[" * 100_000])
    def test_what_is_no_json_is_refused(self, client, body):
        response = client.post("/jobs", content=body)
        assert (response.status_code, code(response)) == (422, "invalid-job")


class TestCancel:
    def test_a_job_is_cancelled(self, client, store, manager, tmp_path):
        client.post("/jobs", json={"name": "a", "tasks": [until(tmp_path / "never")]})
        assert client.post("/jobs/a/cancel", json={}).json() == {"requested": True}
        wait_until(lambda: ended(store, "a"), what="it ends")
        assert store.get_job("a").reason == "cancelled"
        assert client.post("/jobs/a/cancel", json={}).json() == {"requested": False}

    def test_a_task_is_cancelled(self, client, store):
        client.post("/jobs", json=JOB)
        assert client.post("/jobs/a/cancel", json={"tasks": ["b"]}).json() == {"requested": True}
        response = client.post("/jobs/a/cancel", json={"tasks": ["c"]})
        assert (response.status_code, code(response)) == (422, "invalid-job")

    def test_a_job_of_another_owner_is_not_cancelled(self, client):
        client.post("/jobs", json={**JOB, "submitted_by": OWNER})
        assert client.post("/jobs/a/cancel", json={"owner": {**OWNER, "run_id": "r2"}}).json() == {"requested": False}
        assert client.put("/jobs/a/waiter", json={**OWNER, "try_number": 2}).status_code == 204
        assert client.post("/jobs/a/cancel", json={"owner": OWNER}).json() == {"requested": False}
        assert client.post("/jobs/a/cancel", json={"owner": {**OWNER, "try_number": 2}}).json() == {"requested": True}

    def test_a_job_that_does_not_exist_is_not_found(self, client):
        response = client.post("/jobs/a/cancel", json={})
        assert (response.status_code, code(response)) == (404, "job-not-found")


class TestRetry:
    def test_a_job_is_retried_once(self, client, store, manager, tmp_path):
        runs = tmp_path / "runs"
        client.post("/jobs", json={"name": "a", "tasks": [f"echo >> {runs}; false"]})
        wait_until(lambda: ended(store, "a"), what="it ends")
        attempt = store.get_job("a").attempt
        assert client.post("/jobs/a/retry", json={"attempt": attempt}).status_code == 204
        wait_until(lambda: store.get_job("a").attempt > attempt and ended(store, "a"), what="it ends again")
        assert client.post("/jobs/a/retry", json={"attempt": attempt}).status_code == 204
        assert len(runs.read_text().splitlines()) == 2
        assert not list(store.inbox_path.glob("*.json"))

    def test_a_job_that_runs_is_not_retried(self, client, store, manager, tmp_path):
        client.post("/jobs", json={"name": "a", "tasks": [until(tmp_path / "never")]})
        wait_until(lambda: store.get_job("a").state == "working", what="it runs")
        response = client.post("/jobs/a/retry", json={"attempt": store.get_job("a").attempt})
        assert (response.status_code, code(response)) == (409, "job-state")


class TestAddTasks:
    def test_tasks_are_added_once(self, client, store: JobStore):
        client.post("/jobs", json=JOB)
        addition = {"tasks": ["echo three", {"bash": "echo four", "dependencies": ["task-3"]}], "key": "x"}
        first = client.post("/jobs/a/tasks", json=addition).json()["ids"]
        assert client.post("/jobs/a/tasks", json=addition).json()["ids"] == first
        assert len(first) == 2
        assert len(list(store.inbox_path.glob("*.json"))) == 1
        other = client.post("/jobs/a/tasks", json={"tasks": ["echo three"], "key": "y"}).json()["ids"]
        assert not set(other) & set(first)

    def test_they_are_added_once_though_the_server_is_killed(self, servers, store, managers: Managers, tmp_path):
        """It is killed when the request is written down and the manager has not been asked yet, and later."""
        process = servers.start()
        given = {"name": "a", "tasks": [until(tmp_path / "go")]}
        addition = {"tasks": [f"echo >> {tmp_path / 'runs'}", {"bash": "true", "dependencies": ["task-2"]}], "key": "x"}
        with servers.client() as client:
            client.post("/jobs", json=given)
            first = client.post("/jobs/a/tasks", json=addition).json()["ids"]
        process.kill()
        process.wait()
        next(store.inbox_path.glob("*.json")).unlink()  # as if it had been killed before it asked
        servers.start()
        with servers.client() as client:
            assert client.post("/jobs/a/tasks", json=addition).json()["ids"] == first
            managers.start()
            wait_until(lambda: len(store.get_tasks("a")) == 3, what="the manager has added them")
            assert client.post("/jobs/a/tasks", json=addition).json()["ids"] == first
            (tmp_path / "go").touch()
            wait_until(lambda: ended(store, "a"), what="it ends")
            assert client.post("/jobs/a/tasks", json=addition).json()["ids"] == first
        assert [task.id for task in store.get_tasks("a")] == ["task-1", *first]
        assert store.get_job("a").state == "completed"
        assert len((tmp_path / "runs").read_text().splitlines()) == 1

    def test_a_line_that_was_cut_off_does_no_harm(self, client, store):
        client.post("/jobs", json=JOB)
        file = store.paths("a").attached("added.jsonl")
        file.write_bytes(b'{"key": "x", "wor')
        addition = {"tasks": ["echo"], "key": "y"}
        first = client.post("/jobs/a/tasks", json=addition).json()
        assert client.post("/jobs/a/tasks", json=addition).json() == first

    def test_secrets_of_added_tasks_are_kept(self, client, store):
        client.post("/jobs", json=JOB)
        client.post("/jobs/a/tasks", json={"tasks": ["echo hunter22"], "secrets": ["hunter22"], "key": "x"})
        assert b"hunter22" in store.paths("a").attached("secrets.jsonl").read_bytes()

    def test_a_job_that_has_ended_gets_none(self, client, store, manager):
        client.post("/jobs", json=JOB)
        wait_until(lambda: ended(store, "a"), what="it ends")
        response = client.post("/jobs/a/tasks", json={"tasks": ["echo"], "key": "x"})
        assert (response.status_code, code(response)) == (409, "job-state")


class TestDelete:
    def test_a_job_that_has_ended_is_removed_and_stays_so(self, client, store, manager):
        job_id = client.post("/jobs", json=JOB).json()["id"]
        wait_until(lambda: ended(store, "a"), what="it ends")
        assert client.delete("/jobs/a", params={"id": "a-1"}).status_code == 204
        assert store.job_names() == ["a"]
        assert client.delete("/jobs/a", params={"id": job_id}).status_code == 204
        assert store.job_names() == []
        assert client.delete("/jobs/a", params={"id": job_id}).status_code == 204
        response = client.delete("/jobs/a")
        assert (response.status_code, code(response)) == (404, "job-not-found")

    def test_a_job_that_runs_is_not_removed(self, client):
        client.post("/jobs", json=JOB)
        response = client.delete("/jobs/a")
        assert (response.status_code, code(response)) == (409, "job-state")


def test_a_job_that_was_removed_is_not_run_again_by_a_repeated_request(client, store, manager):
    first = client.post("/jobs", json=JOB).json()
    wait_until(lambda: ended(store, "a"), what="it ends")
    store.delete("a")
    again = client.post("/jobs", json=JOB)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert store.job_names() == []
    assert client.post("/jobs", json={**JOB, "key": "k2"}).status_code == 201
    assert client.post("/jobs", json=JOB).json()["id"] == first["id"]


def test_without_a_key_the_same_job_can_be_submitted_when_it_is_gone(client, store, manager):
    given = {key: value for key, value in JOB.items() if key != "key"}
    client.post("/jobs", json=given)
    wait_until(lambda: ended(store, "a"), what="it ends")
    store.delete("a")
    assert client.post("/jobs", json=given).status_code == 201


def test_only_short_answers_are_remembered(server, client):
    """A job may have labels of megabytes."""
    for name, label in (("short", "x"), ("long", "x" * 5_000)):
        client.post("/jobs", json={**JOB, "name": name, "spec": {"labels": {"a": label}}}).raise_for_status()
    assert [job.name for job in server.service.submissions._answers.values()] == ["short"]
