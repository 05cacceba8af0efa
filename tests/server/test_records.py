"""The records of jobs, without secrets, in pieces."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from airflow_provider_air_executor.jobs.models import Job, Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.listing import MOST_REMOVED
from tests.server.test_submitting import code, ended
from tests.support.servers import ServerThread
from tests.support.waiting import wait_until

SECRET = "hunter22"


def lines(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture
def done(client, store, manager) -> Job:
    """A job that has ended."""
    bash = f"echo {SECRET}; echo last; echo '{{\"x\": 1}}' > $AIR_EXECUTOR_OUTPUT"
    given = {
        "name": "a",
        "tasks": [{"id": "t", "bash": bash, "env": {"PASSWORD": SECRET}}, {"id": "u", "bash": "false", "retries": 1}],
        "spec": {"labels": {"team": f"x {SECRET}"}, "outlets": [f"s3://{SECRET}/x"]},
        "secrets": [SECRET],
    }
    assert client.post("/jobs", json=given).status_code == 201
    wait_until(lambda: ended(store, "a"), what="it ends")
    return store.get_job("a")


class TestOneJob:
    def test_its_record(self, client, done):
        found = client.get("/records/a").json()["job"]
        assert Job.model_validate(found) == done.evolve(labels={"team": "x ***"}, outlets=("s3://***/x",))

    def test_its_tasks(self, client, done, store):
        first, second = (Task.model_validate(line) for line in lines(client.get("/records/a/tasks")))
        kept = store.get_tasks("a")
        assert second == kept[1]
        assert first.env == {"PASSWORD": "***"}
        assert (first.id, first.status, first.args[0]) == ("t", "completed", "-c")
        assert first.args[1] == kept[0].args[1].replace(SECRET, "***")

    def test_its_attempts(self, client, done):
        found = [(line["task_id"], line["number"]) for line in lines(client.get("/records/a/attempts"))]
        assert found == [("t", 1), ("u", 1), ("u", 2)]
        found = lines(client.get("/records/a/attempts", params={"task": "t"}))
        assert [line["status"] for line in found] == ["completed"]

    def test_its_results(self, client, done):
        assert client.get("/records/a/results").json() == {"results": {"t": {"x": 1}}}
        response = client.get("/records/a/results", params={"reserved": "x,y"})
        assert response.status_code == 200
        response = client.get("/records/a/results", params={"reserved": ["y", "x"]})
        assert (response.status_code, code(response)) == (422, "output")
        assert response.json()["task_id"] == "t"

    def test_its_log(self, client, done):
        response = client.get("/records/a/log", params={"task": "t"})
        assert response.content == b"***\nlast\n"
        assert response.headers["x-offset"] == "0"
        size = int(response.headers["x-log-size"])
        assert int(response.headers["x-next-offset"]) == size == len(SECRET) + 6
        response = client.get("/records/a/log", params={"task": "t", "offset": -5, "limit": 2})
        assert response.content == b"la"
        assert int(response.headers["x-offset"]) == size - 5
        assert client.get("/records/a/log", params={"task": "none"}).content == b""
        assert client.get("/records/a/log-tail", params={"task": "t", "lines": 1}).json() == {"lines": ["last"]}
        assert client.get("/records/a/log-location").json()["location"].endswith("/jobs/a/logs")

    def test_its_new_lines(self, client, done):
        given = {"positions": {"t": {}, "u": {}}, "is_over": True}
        found = client.post("/records/a/new-lines", json=given).json()["lines"]
        assert found["t"]["lines"] == ["***", "last"]
        given = {"positions": {"t": found["t"]["position"]}, "is_over": True}
        assert client.post("/records/a/new-lines", json=given).json() == {"lines": {}}

    def test_the_position_of_a_reader(self, client, done):
        assert client.get("/records/a/positions/x").json() == {"offsets": {}}
        assert client.put("/records/a/positions/x", json={"offsets": {"t": 3}}).status_code == 204
        assert client.get("/records/a/positions/x").json() == {"offsets": {"t": 3}}
        assert client.put("/records/a/positions/..", json={"offsets": {}}).status_code in (404, 405, 422)

    @pytest.mark.parametrize("path", ["", "/tasks", "/attempts", "/results", "/log?task=t", "/log-tail?task=t"])
    def test_one_that_does_not_exist(self, client, path):
        response = client.get(f"/records/none{path}")
        assert (response.status_code, code(response)) == (404, "job-not-found")


class TestManyJobs:
    def test_those_of_some_names(self, client, store: JobStore):
        for name in ("a", "b", "c"):
            store.submit(name, ["echo"])
        store.paths("c").state.write_text("{")
        found = lines(client.post("/records/query", json={"names": ["b", "none", "c", "../x"]}))
        assert [(line["name"], line["job"] and line["job"]["name"]) for line in found] == [
            ("b", "b"),
            ("none", None),
            ("c", None),
            ("../x", None),
        ]
        codes = [line.get("error", {}).get("type") for line in found]
        assert codes == [None, None, "urn:air-executor:corrupt-file", "urn:air-executor:invalid-job"]

    def test_those_that_were_removed(self, client, store, done):
        assert lines(client.get("/past-jobs")) == []
        store.delete("a")
        (past,) = lines(client.get("/past-jobs"))
        assert (past["name"], past["state"], past["labels"]) == ("a", "failed", {"team": "x ***"})
        assert [run["name"] for run in lines(client.get("/durations", params={"series": "a"}))] == ["a"]

    def test_why_they_do_not_progress(self, client, store):
        store.submit("a", ["echo"])
        assert "no manager" in client.get("/trouble/a").json()["remark"]
        assert client.post("/held-up", json={"names": ["a", "none"]}).status_code == 200


class TestListing:
    def listed(self, client: httpx.Client, after: str | None = None) -> tuple[list[str], dict[str, Any]]:
        *jobs, last = lines(client.get("/records", params={} if after is None else {"after": after}))
        return [line["job"]["name"] for line in jobs], last

    def test_only_what_has_changed_comes_again(self, client, store: JobStore, monkeypatch):
        monkeypatch.setattr("airflow_provider_air_executor.jobs.index._FRESH_SECONDS", 0.0)
        for name in ("a", "b"):
            store.submit(name, ["echo"])
        names, last = self.listed(client)
        assert (set(names), last["whole"]) == ({"a", "b"}, True)
        assert self.listed(client, last["cursor"])[0] == []
        store.submit("c", ["echo"])
        wait_until(lambda: self.listed(client, last["cursor"])[0] == ["c"], what="it is seen")
        store.paths("b").state.write_text(store.paths("b").state.read_text().replace('"waiting"', '"failed"'))
        store.delete("b")
        wait_until(lambda: self.listed(client, last["cursor"])[1]["removed"] == ["b"], what="it is seen")
        names, last = self.listed(client, last["cursor"])
        assert (names, last["whole"]) == (["c"], False)

    @pytest.mark.parametrize("cursor", ["", "x", "00000000-1", "00000000-" + "9" * 30])
    def test_a_cursor_that_is_not_known_gets_all(self, client, store, cursor):
        store.submit("a", ["echo"])
        names, last = self.listed(client, cursor)
        assert (names, last["whole"]) == (["a"], True)

    def test_labels_and_counts_are_there(self, client, done):
        job, last = lines(client.get("/records"))
        assert job["labels"] == job["job"]["labels"] == {"team": "x ***"}
        assert job["outcomes"] == {"completed": 1, "failed": 1}
        assert (last["unreadable"], last["held_up"]) == (0, {})

    def test_removals_that_are_forgotten_make_all_come_again(self, server: ServerThread, client):
        _, last = self.listed(client)
        listing = server.service.listing
        listing._number += MOST_REMOVED + 1
        listing._removed.extend((number, f"x{number}") for number in range(1, MOST_REMOVED + 2))
        assert self.listed(client, last["cursor"])[1]["whole"]
