"""The manager is controlled, and locks are held, through the server."""

from __future__ import annotations

import os

from airflow_provider_air_executor.jobs import files, manager_control
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.manager_control import Control
from tests.server.test_submitting import code
from tests.support.servers import ServerThread
from tests.support.waiting import wait_until


def test_the_manager_is_paused_and_gets_slots(client, store):
    assert client.get("/control").json() == {"paused": False, "slots": {}}
    assert client.put("/control", json={"paused": True, "slots": {"local": 3}}).json() == {
        "paused": True,
        "slots": {"local": 3},
    }
    assert manager_control.load(store) == Control(True, {"local": 3})
    assert client.put("/control", json={"slots": {"local": None}}).json() == {"paused": True, "slots": {}}


def test_what_cannot_be_is_refused(client):
    for given in ({"slots": {"local": 0}}, {"slots": {"No": 1}}):
        response = client.put("/control", json=given)
        assert (response.status_code, code(response)) == (422, "settings")


class TestLocks:
    def test_one_client_holds_a_lock_at_a_time(self, client):
        assert client.put("/locks/x", params={"holder": "1"}).json() == {"seconds": 10.0}
        response = client.put("/locks/x", params={"holder": "2"})
        assert (response.status_code, code(response)) == (423, "locked")
        assert client.put("/locks/x", params={"holder": "1"}).status_code == 200
        assert client.put("/locks/y", params={"holder": "2"}).status_code == 200
        assert client.delete("/locks/x", params={"holder": "2"}).status_code == 204
        assert client.put("/locks/x", params={"holder": "2"}).status_code == 423
        assert client.delete("/locks/x", params={"holder": "1"}).status_code == 204
        assert client.delete("/locks/x", params={"holder": "1"}).status_code == 204
        assert client.put("/locks/x", params={"holder": "2"}).status_code == 200

    def test_a_holder_that_is_not_heard_of_loses_it(self, client, monkeypatch):
        monkeypatch.setattr("airflow_provider_air_executor.server.leases.SECONDS", 0.05)
        client.put("/locks/x", params={"holder": "1"})
        wait_until(lambda: client.put("/locks/x", params={"holder": "2"}).status_code == 200, what="it is free")

    def test_processes_of_this_machine_respect_it(self, client, store):
        client.put("/locks/x", params={"holder": "1"})
        with files.opened(store.base_path / "x.lock", os.O_RDWR) as descriptor:
            assert not files.lock(descriptor, store.base_path / "x.lock")
        client.delete("/locks/x", params={"holder": "1"})
        with FileJobs(store).only_one("x"):
            assert client.put("/locks/x", params={"holder": "1"}).status_code == 423
        assert client.put("/locks/x", params={"holder": "1"}).status_code == 200

    def test_two_tokens_with_one_word_are_two_holders(self, server: ServerThread):
        one, two = (server.client_with(server.token(name, "submit")) for name in ("one", "two"))
        assert one.put("/locks/x", params={"holder": "1"}).status_code == 200
        assert two.put("/locks/x", params={"holder": "1"}).status_code == 423

    def test_a_lock_is_a_word(self, client, store):
        for what in ("..", "a.b", "manager-control", "x" * 65):
            assert client.put(f"/locks/{what}", params={"holder": "1"}).status_code in (404, 422)
        assert not list(store.base_path.glob("*a.b*"))
