"""Requests reach their server, over whatever network: what is lost is sent again, and has one effect."""

from __future__ import annotations

import http.server
import json
import logging
import os
import socketserver
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.exceptions import (
    AccessError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobsAwayError,
    ProtocolError,
    SettingsError,
)
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote import connections, transport
from airflow_provider_air_executor.remote.connections import Address, Answer
from airflow_provider_air_executor.remote.jobs import RemoteJobs
from airflow_provider_air_executor.remote.outage import Outage
from airflow_provider_air_executor.remote.protocol import Target
from airflow_provider_air_executor.remote.transport import PATIENT, Ask, Transport, check_protocol
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.support.certificates import Authority
from tests.support.jobs import ended, publish_job, task
from tests.support.managers import Managers
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.servers import Servers, ServerThread
from tests.support.waiting import PATIENCE, until, wait_until

LOGGER = "airflow_provider_air_executor.remote"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


# -- answers that are lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 40])
def test_a_lost_answer_has_no_second_effect(jobs: RemoteJobs, proxy: Proxy, store: JobStore, after: int) -> None:
    """Each change is carried out, its answer is lost, and the client sends it again."""
    jobs.prepare()

    def lost(change: Callable[[], Any]) -> Any:
        before = proxy.lost
        proxy.lose_next_answer(after)
        found = change()
        assert proxy.lost == before + 1
        return found

    job = lost(lambda: jobs.submit("a", [task("x")], secrets=["secret-1234"]))
    assert store.get_job("a").id == job.id
    with pytest.raises(JobExistsError):
        jobs.submit("a", [task("x")], secrets=["secret-1234"])
    ids = lost(lambda: jobs.add_tasks("a", ["true", "true"]))
    first, *more = (inbox.load_request(path) for path in inbox.requests(store))
    assert tuple(each.id for each in first.tasks) == ids
    assert all(tuple(each.id for each in request.tasks) == ids for request in more)  # the manager passes them over
    assert jobs.add_tasks("a", ["true"]) != ids[:1]
    publish_job(store, store.get_job("a").evolve(state=JobState.FAILED))
    lost(lambda: jobs.save_positions("a", "airflow", {"x": 3}))
    assert jobs.load_positions("a", "airflow") == {"x": 3}
    lost(lambda: jobs.set_slots(3))
    assert jobs.control().slots == {"local": 3}
    lost(lambda: jobs.delete("a"))
    assert store.job_names() == []
    with pytest.raises(JobNotFoundError):
        jobs.delete("a")


def test_a_cancel_whose_answer_is_lost_is_not_a_second_one(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    """A second one would end what always runs, too."""
    managers.start()
    jobs.submit("a", [task("x", "sleep 1000"), task("y", until(tmp_path / "go"), after="x", run_if="always")])
    wait_until(lambda: jobs.get_tasks("a")[0].attempt, what="it runs")
    proxy.lose_next_answer()  # that of the job
    proxy.lose_next_answer()  # and that of the request
    assert jobs.cancel("a")
    assert proxy.lost == 2
    wait_until(lambda: jobs.get_tasks("a")[1].attempt, what="the other one runs")
    assert jobs.get_job("a").cancel_again_requested_at is None
    (tmp_path / "go").touch()
    ended(store, "a")
    assert jobs.get_tasks("a")[1].status == "completed"


def test_a_retry_whose_answer_is_lost_is_one(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start()
    jobs.submit("a", [f"echo x >> {tmp_path}/x; false"])
    ended(store, "a")
    for number in (2, 3):
        proxy.lose_next_answer()
        jobs.retry("a")
        wait_until(lambda: (tmp_path / "x").read_text() == "x\n" * number, what="it ran again")  # noqa: B023
        ended(store, "a")
    assert jobs.get_job("a").attempt == 3
    assert (tmp_path / "x").read_text() == "x\n" * 3
    assert inbox.requests(store) == []


def test_a_kept_connection_that_the_server_has_closed_is_no_outage(
    jobs: RemoteJobs, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.control()
    proxy.break_once()
    wait_until(lambda: proxy.open_connections == 0, what="it is closed")
    jobs.with_patience(0).control()
    assert said(caplog) == []


# -- outages ---------------------------------------------------------------------------------------------------


def test_a_request_waits_until_the_server_is_back_and_that_is_said_once(
    connected: Callable[..., RemoteJobs], proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs = connected(None)
    jobs.submit("a", ["true"])
    proxy.cut()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(jobs.get_job("a").name)) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(said(caplog)) == 1, what="it is said that it is away")
    with pytest.raises(JobsAwayError, match="cannot be reached now") as caught:
        jobs.with_patience(0.05).get_job("a")
    assert caught.value.where == proxy.url
    assert caught.value.since is not None
    assert not found
    proxy.restore()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == ["a"] * 20
    away, back = said(caplog)
    assert f"the manager at {proxy.url} cannot be reached now: " in away
    assert back == f"the manager at {proxy.url} is reached again"


def test_while_it_is_away_nobody_without_patience_waits_for_another_try(
    jobs: RemoteJobs, proxy: Proxy, short_silences: None
) -> None:
    jobs.prepare()
    proxy.cut()
    pages = jobs.with_patience(0)
    accepted = proxy.accepted
    for _ in range(50):
        with pytest.raises(JobsAwayError):
            pages.index().jobs()
    assert proxy.accepted - accepted <= 5  # one a second, but that the first one may be tried twice
    proxy.restore()
    wait_until(lambda: not away(pages.index().jobs), what="it is seen that it is back")


def test_an_answer_that_is_an_error_shows_that_the_server_is_back(jobs: RemoteJobs, proxy: Proxy) -> None:
    jobs.prepare()
    proxy.cut()
    assert away(lambda: jobs.with_patience(0).get_job("a"))
    proxy.restore()
    with pytest.raises(JobNotFoundError):
        jobs.get_job("a")
    assert jobs._link.transport.outage.error is None


def away(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except JobsAwayError:
        return True
    return False


def test_few_of_those_who_do_not_wait_are_held(
    connected: Callable[..., RemoteJobs], proxy: Proxy, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has been refused yet, so that each of them may still hope for an answer."""
    monkeypatch.setattr(transport, "_MOST_IMPATIENT", 2)
    monkeypatch.setattr(transport, "IMPATIENT", transport.Timeouts(connect=0.5, read=5.0))
    store.submit("j", ["true"])
    jobs = connected(0.0)
    assert jobs.get_job("j").name == "j"
    proxy.stand_still()

    def why(_: int) -> str:
        with pytest.raises(JobsAwayError) as error:
            jobs.get_job("j")
        return error.value.why

    with ThreadPoolExecutor(8) as pool:
        said = Counter(pool.map(why, range(8)))
    assert said["too many requests wait for its answer"] == 6
    proxy.restore()
    wait_until(lambda: not away(lambda: jobs.get_job("j")), what="it is seen that it is back")


def test_a_half_open_connection_is_given_up(
    connected: Callable[..., RemoteJobs], proxy: Proxy, short_silences: None, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = connected(None)
    jobs.submit("a", ["true"])
    proxy.stand_still()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(jobs.get_job("a").name))
    thread.start()
    wait_until(lambda: said(caplog), what="it is away")
    assert "no answer in time" in said(caplog)[0]
    proxy.restore()
    thread.join(PATIENCE)
    assert found == ["a"]


def test_an_answer_that_breaks_off_is_asked_for_again(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    jobs.submit("a", [task(f"t{number}", "x" * 1000) for number in range(500)])
    expected = store.get_tasks("a")
    for after in (10, 5_000, 60_000):
        proxy.lose_next_answer(after)
        assert jobs.get_tasks("a") == expected
    (store.paths("a").logs / "t0.log").write_bytes(b"0123456789" * 50_000)
    proxy.lose_next_answer(20_000)
    assert jobs.log("a", "t0").read().data == b"0123456789" * 50_000
    assert proxy.lost == 4


def test_a_server_that_is_killed_and_started_again_is_waited_for(
    store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    servers = Servers(store)
    store.create_directories()
    try:
        process = servers.start()
        jobs = remote.connect(Target(socket=servers.info().socket), patience=None)
        jobs.submit("a", ["true"])
        process.kill()
        process.communicate()
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(jobs.get_job("a").name))
        thread.start()
        wait_until(lambda: said(caplog), what="it is away")
        servers.start()
        thread.join(PATIENCE)
        assert found == ["a"]
        assert len(said(caplog)) == 2
    finally:
        servers.close()


def test_the_handler_of_a_signal_may_try_in_place_of_what_it_has_interrupted() -> None:
    """A worker that is killed cancels its job in such a handler, while what waits for the job is about to try."""
    outage = Outage("x", logging.getLogger(LOGGER))
    outage.failed("no route")
    outage.await_turn(time.monotonic() + 10.0)  # and a signal comes while the server is asked
    outage.await_turn(time.monotonic() + 1.0)
    with pytest.raises(JobsAwayError), ThreadPoolExecutor() as threads:  # other threads wait
        threads.submit(outage.await_turn, time.monotonic() + 0.2).result()
    outage.worked()
    outage.gave_up()
    assert outage.error is None
    transport = Transport(Target(url="http://127.0.0.1:1"), logging.getLogger(LOGGER))
    for lock in (transport._lock, transport._connected(PATIENT)._guard):
        with lock:
            assert lock.acquire(timeout=0.1)
            lock.release()


def test_what_was_asked_before_an_outage_was_over_and_fails_late_says_nothing_of_a_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    outage = Outage("x", logging.getLogger(LOGGER))
    slow = outage.await_turn(None)
    outage.failed("no route", began=outage.await_turn(None))
    outage.worked()
    outage.failed("cut", began=slow)
    assert outage.error is None
    assert len(said(caplog)) == 2
    outage.failed("cut", began=outage.await_turn(None))
    assert outage.error is not None
    assert len(said(caplog)) == 3


def test_an_answer_to_what_was_asked_before_an_outage_does_not_say_that_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    outage = Outage("x", logging.getLogger(LOGGER))
    slow = outage.await_turn(None)
    outage.failed("refused", began=outage.await_turn(None))
    outage.worked(began=slow)
    assert outage.error is not None
    outage.worked(began=outage.await_turn(None))
    assert outage.error is None
    assert len(said(caplog)) == 2


def test_a_server_that_ends_while_it_answers_is_missed_once(
    server: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes no new connections then, and answers what it was asked before."""
    caplog.set_level(logging.INFO, LOGGER)
    transport = Transport(Target(url=server.url, token=server.token("tests", "admin")), logging.getLogger(LOGGER))
    hello = Ask("GET", "/v1/hello")

    def read_slowly(answer: Answer) -> bytes:
        content = answer.content
        server.stop()
        with pytest.raises(JobsAwayError):
            transport.request(hello, lambda other: other.content, patience=0)
        return content

    assert b"protocol" in transport.request(hello, read_slowly, patience=None)
    transport.close()
    assert transport.outage.error is not None
    assert len(said(caplog)) == 1


def test_tries_are_random_and_become_rare(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("x", logging.getLogger(LOGGER))
    pauses = []
    for _ in range(12):
        outage.failed("no")
        pauses.append(outage._try_at - outage._failed_at)
    assert all(0 <= pause <= min(30.0, 0.2 * 2**number) for number, pause in enumerate(pauses))
    assert len(set(pauses)) == 12
    outage.failed("no", retry_after=20.0)
    assert 20.0 <= outage._try_at - outage._failed_at <= 50.0
    assert len(said(caplog)) == 1


# -- other servers -----------------------------------------------------------------------------------------------


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers what the test says."""

    protocol_version = "HTTP/1.1"
    hello: Any = {"protocol": {"lowest": 1, "highest": 1}, "version": "1"}
    answers: list[tuple[int, dict[str, str], bytes]] = []
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        own = {"Air-Executor-Protocol": "1"}
        status, headers, body = 200, own, json.dumps(self.hello).encode()
        if not self.path.endswith("/v1/hello"):
            status, headers, body = self.answers.pop(0) if self.answers else (200, own, b'{"paused":false,"slots":{}}')
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other() -> Iterator[tuple[type[_Answers], str]]:
    """A server of which the test says what it answers, and its URL."""
    handler = type("Answers", (_Answers,), {"answers": [], "asked": []})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as found:
        found.daemon_threads = True
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield handler, f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


PROBLEM = b'{"type": "urn:air-executor:too-many", "detail": "wait"}'


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_who_is_asked_to_come_again_does_so(other: Any, status: int, caplog: pytest.LogCaptureFixture) -> None:
    handler, url = other
    odd = {"Retry-After": "Sat, 99 Jan 999999999 00:00:00 GMT"}
    handler.answers += [(status, {"Retry-After": "0"}, PROBLEM), (status, odd, b"<html>a proxy</html>")]
    jobs = remote.connect(Target(url=url, name=f"{status}"), patience=30.0)
    assert not jobs.control().paused
    assert handler.asked.count("/v1/control") == 3
    assert handler.asked.count("/v1/hello") == (3 if status >= 500 else 1)  # another version may have come
    assert "wait" in said(caplog)[0]


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (404, {}, b"<html>", ProtocolError),
        (301, {"Location": "/x"}, b"", ProtocolError),
        (200, {}, b"<html>", ProtocolError),
        (401, {}, b'{"type": "urn:air-executor:unauthorized", "detail": "no token"}', AccessError),
        (403, {}, b'{"type": "urn:air-executor:forbidden", "detail": "not with this one"}', AccessError),
        (400, {}, b'{"type": "urn:air-executor:protocol", "detail": "upgrade the client"}', ProtocolError),
    ],
)
def test_an_answer_is_not_asked_for_again(
    other: Any, status: int, headers: dict[str, str], body: bytes, error: type[Exception]
) -> None:
    handler, url = other
    handler.answers.append((status, headers, body))
    jobs = remote.connect(Target(url=url, name=f"{status} {error}"), patience=None)
    with pytest.raises(error):
        jobs.control()
    assert len(handler.asked) == 2
    assert not jobs.control().paused


def test_versions_that_do_not_meet_are_said_with_what_to_upgrade(other: Any) -> None:
    handler, url = other
    handler.hello = {"protocol": {"lowest": 2, "highest": 3}, "version": "9.1"}
    jobs = remote.connect(Target(url=url), patience=None)
    with pytest.raises(ProtocolError, match=r"air-executor 9\.1 at .* versions 2 to 3 .* upgrade air-executor .* here"):
        jobs.get_job("a")
    with pytest.raises(ProtocolError, match=r"upgrade air-executor 0 at old"):
        check_protocol({"protocol": {"lowest": 0, "highest": 0}, "version": "0"}, "old")
    for hello in ({}, [], {"protocol": 3, "version": "x"}):
        with pytest.raises(ProtocolError, match="is no server of Air-Executor"):
            check_protocol(hello, "it")
    handler.hello = "no"
    assert not jobs.test().is_well


def test_a_path_before_the_api_stays(other: Any) -> None:
    handler, url = other
    remote.connect(Target(url=f"{url}/air/")).control()
    assert handler.asked == ["/air/v1/hello", "/air/v1/control"]


def test_a_proxy_of_the_environment_is_used_but_not_for_unix_sockets(
    other: Any, server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = other
    monkeypatch.setenv("http_proxy", url.replace("http://", "http://me:pass%20word@"))
    monkeypatch.setenv("https_proxy", url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert remote.connect(Target(socket=server.socket, name="with a proxy")).control()
    assert not remote.connect(Target(url=server.url, token="y"), patience=0).test().is_well
    assert handler.asked == []
    assert remote.connect(Target(url="http://elsewhere.example/x")).control()
    assert handler.asked == ["http://elsewhere.example/x/v1/hello", "http://elsewhere.example/x/v1/control"]
    with pytest.raises(JobsAwayError, match="502"):
        remote.connect(Target(url="https://elsewhere.example:99"), patience=0).control()
    assert handler.asked[-1] == "CONNECT elsewhere.example:99"
    assert len(handler.asked) == 3, "what is sent to this machine, without TLS, does not leave it"


@pytest.mark.parametrize("url", ["", "ftp://x", "https://", "http://x:y", "http://x:1/?q", "https://x/#f", "host:80"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="is no URL of a server"):
        Address(Target(url=url), None)


def test_a_token_that_cannot_be_sent_is_refused(server: ServerThread) -> None:
    for token in ("a\nb", "täken€"):
        with pytest.raises(ProtocolError, match="cannot be asked") as error:
            remote.connect(Target(url=server.url, token=token)).control()
        assert token not in str(error.value)
        assert repr(token)[1:-1] not in str(error.value), "it would be in the log"


def test_a_job_that_is_too_long_is_an_error_and_no_outage(server: ServerThread) -> None:
    token = server.token("long", "submit")
    jobs = remote.connect(Target(url=server.url, token=token, name="long"), patience=None)
    with pytest.raises(InvalidJobError, match="at most 67108864 bytes"):
        jobs.submit("long", ["x" * 70_000_000])


# -- TLS ---------------------------------------------------------------------------------------------------------


def test_tls_with_an_authority_of_its_own_and_a_certificate_of_the_client(store: JobStore, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(make(tmp_path / "other"))
    own, client = authority.issue(), authority.issue("client", is_client=True)
    servers = Servers(store)
    port = free_port()
    flags = ["--tls-cert", str(own.certificate), "--tls-key", str(own.key), "--client-ca", str(authority.path)]
    try:
        servers.start("--listen", f"127.0.0.1:{port}", *flags)
        target = Target(
            url=f"https://localhost:{port}",
            token=Tokens(store.base_path).create("me", Scope.ADMIN),
            ca=str(authority.path),
            client_cert=str(client.certificate),
            client_key=str(client.key),
        )
        assert "token 'me' (scope admin)" in remote.connect(target).test().message
        with pytest.raises(AccessError, match=r"is not trusted .*other/ca\.pem has not the authority"):
            remote.connect(target._replace(ca=str(other.path)), patience=None).control()
        with pytest.raises(AccessError, match="name the file of its authority"):
            remote.connect(target._replace(ca=None), patience=None).control()
        with pytest.raises(JobsAwayError):
            remote.connect(target._replace(client_cert=None, client_key=None), patience=0).control()
        with pytest.raises(SettingsError, match="cannot be read"):
            remote.connect(target._replace(ca=str(tmp_path / "missing"))).control()
        assert not remote.connect(target._replace(ca=str(tmp_path / "missing"))).test().is_well
    finally:
        servers.close()


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


# -- processes -----------------------------------------------------------------------------------------------------


def test_a_forked_process_has_connections_of_its_own(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    assert jobs.wait("a", 0)  # the stream is there, with its thread and a connection
    assert jobs.get_job("a").name == "a"
    pool = jobs._link.transport._pool
    (kept,) = (connection for _, connection in pool._idle)
    before = proxy.accepted
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 and later warn of threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            found = jobs.get_job("a").name, jobs.wait("a", 0.01), [job.name for job in jobs.index().jobs()]
            os.write(writing, repr(found).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "('a', True, ['a'])"
    assert proxy.accepted > before
    assert jobs.get_job("a").name == "a"
    assert [connection for _, connection in pool._idle] == [kept]  # the parent goes on with what it has


def test_files_need_no_http_client() -> None:
    code = (
        "import sys, airflow_provider_air_executor.jobs.file_jobs, airflow_provider_air_executor.remote\n"
        "assert not {'http.client', 'httpx', 'ssl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_threads_share_the_connections(jobs: RemoteJobs, proxy: Proxy) -> None:
    jobs.submit("a", ["true"])
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(jobs.get_job("a").name)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == ["a"] * 100
    accepted = proxy.accepted
    for _ in range(20):
        jobs.get_job("a")
    assert proxy.accepted == accepted


def test_connections_that_nobody_uses_are_closed(
    jobs: RemoteJobs, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is a stream, whose thread sees to that."""
    monkeypatch.setattr("airflow_provider_air_executor.server.events.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.5)
    jobs.submit("a", ["true"])
    threads = [threading.Thread(target=jobs.get_job, args=("a",)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    jobs.wait("a", 0)
    wait_until(lambda: proxy.open_connections == 1, what="only the stream is left")
    jobs.get_job("a")
    jobs.close()
    wait_until(lambda: proxy.open_connections == 0, what="all are closed")
    assert jobs.get_job("a").name == "a"
