"""Requests to a server, over TCP, TLS or a Unix socket, which are sent again while it is away.

All requests may be sent twice: the server carries out each change once. So a request whose answer was lost is sent
again, within the patience of the one who asks. A connection that is half open, over which nothing comes and nothing is
refused, is found by time limits.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import http.client
import json
import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.exceptions import AccessError, AirExecutorError, ProtocolError
from airflow_provider_air_executor.remote import protocol, records
from airflow_provider_air_executor.remote.connections import Address, Answer, Connection, Pool, Timeouts
from airflow_provider_air_executor.remote.outage import BUSY, Outage
from airflow_provider_air_executor.remote.protocol import SshTarget, Target

T = TypeVar("T")

PATIENT = Timeouts(connect=10.0, read=30.0)
IMPATIENT = Timeouts(connect=2.0, read=10.0)  # of those who show at once that it is away
_MOST_IMPATIENT = 16  # requests of these at a time
# Answers that say that it is asked again later; also those of a proxy whose server is away.
_AWAY = (408, 425, 429, 500, 502, 503, 504)
_ANSWERS = ("manager", "no-locks", "base-path")  # problems with such a status that are an answer all the same

_all: weakref.WeakSet[Transport] = weakref.WeakSet()


class AwayError(Exception):
    """A try has not reached the server.

    :param is_busy: whether the server itself has said that it is to be asked later.
    :param is_lost: whether a connection broke, which may have been an old one.
    """

    def __init__(self, why: str, retry_after: float = 0.0, *, is_lost: bool = False, is_busy: bool = False) -> None:
        super().__init__(why)
        self.is_busy = is_busy
        self.retry_after = retry_after
        self.is_lost = is_lost


class Ask(NamedTuple):
    """What is asked."""

    method: str
    path: str  # below the URL of the server; its parts are quoted
    params: Mapping[str, Any] = {}
    content: bytes | None = None
    headers: Mapping[str, str] = {}


class Transport:
    """The connections of this process to one server. It may be used by several threads, and after a fork.

    :param target: the server.
    :param log: told once that the server is away, and once that it is back.
    """

    def __init__(self, target: Target, log: logging.Logger) -> None:
        self.target = target
        self._log = log
        self._forked: list[Callable[[], None]] = []
        self._begin()
        _all.add(self)

    def on_fork(self, begin: Callable[[], None]) -> None:
        """Let this be called in a process that was forked."""
        self._forked.append(begin)

    def _begin(self) -> None:
        """Begin anew, also in a process that was forked: connections and locks are those of its parent."""
        self.outage = Outage(self.target.where, self._log)
        self._lock = threading.RLock()  # a signal handler may ask something, too
        self._pool: Pool | None = None
        self._socket: str | None = None
        self.hello: dict[str, Any] | None = None  # what the server has said of itself
        self._places = threading.BoundedSemaphore(_MOST_IMPATIENT)
        self._was_reached = False

    def request(self, ask: Ask, read: Callable[[Answer], T], *, patience: float | None) -> T:
        """Send a request, again and again while the server is away.

        :param read: reads the answer, all of it; it is called again for another answer if the first one breaks off.
        :param patience: seconds for which it is tried; 0: once; None: without end.
        :raises JobsAwayError: if the server is away for longer.
        :raises AirExecutorError: if that is its answer.
        """
        deadline = None if patience is None else time.monotonic() + patience
        timeouts = PATIENT if patience is None or patience > 0 else IMPATIENT
        may_be_old = True
        while True:
            began = self.outage.await_turn(deadline)
            try:
                with self._place(timeouts), self.opened(ask, timeouts, began) as answer:
                    found = read(answer)
            except AwayError as error:
                if error.is_lost and may_be_old:  # a connection that was kept, most likely
                    may_be_old = False
                    self.outage.gave_up()  # for the next turn, which is this one's, too
                    continue
                self.failed(error, began)
                continue
            except BaseException:
                self.outage.gave_up()
                raise
            self.outage.worked(began=began)
            return found

    @contextlib.contextmanager
    def _place(self, timeouts: Timeouts) -> Iterator[None]:
        """Of those who do not wait, only some are held by a server that does not answer: their threads are few.

        :raises JobsAwayError: if there is no place in time.
        """
        if timeouts is not IMPATIENT:
            yield
            return
        if not self._places.acquire(timeout=timeouts.connect):
            raise self.outage.unknown(BUSY)
        try:
            yield
        finally:
            self._places.release()

    def failed(self, error: AwayError, began: float) -> None:
        """The server is away. Who comes back may be another version, and another scope of the token.

        :param began: when it was asked.
        """
        if not error.is_busy:
            self.hello = None
        self.outage.failed(str(error), error.retry_after, began=began)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        if self._pool is not None:
            self._pool.close()

    def tidy(self) -> None:
        """Close the connections that nobody has used for a while; called now and then by those with a thread."""
        if self._pool is not None:
            self._pool.tidy()

    @contextlib.contextmanager
    def opened(
        self, ask: Ask, timeouts: Timeouts, began: float, *, use: Callable[[Connection], None] | None = None
    ) -> Iterator[Answer]:
        """Send a request once; its answer is read within.

        :param began: when its turn came, as :meth:`.Outage.await_turn` has returned.
        :param use: is given the connection that is used.
        :raises AwayError: if it does not come, or breaks off.
        :raises AirExecutorError: if it is an error.
        """
        pool = self._connected(timeouts)
        if self.hello is None:
            self._agree(pool, timeouts, began)
        with self._sent(pool, ask, timeouts, began, use) as answer:
            yield answer

    @contextlib.contextmanager
    def _sent(
        self, pool: Pool, ask: Ask, timeouts: Timeouts, began: float, use: Callable[[Connection], None] | None = None
    ) -> Iterator[Answer]:
        is_connected = False
        try:
            connection = pool.take(timeouts)
            is_connected = True
            with contextlib.ExitStack() as unless_whole:
                unless_whole.callback(connection.close)
                if use is not None:
                    use(connection)
                answer = self._asked(connection, pool.address, ask)
                unless_whole.callback(answer.close)
                yield self._checked(answer, began)
                if answer.is_whole:
                    unless_whole.pop_all()
                    pool.keep(connection)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, AirExecutorError):
                raise
            # At the first contact it is a mistake; later on a renewal has gone wrong, and mends itself.
            if isinstance(error, ssl.SSLCertVerificationError) and not self._was_reached:
                raise self._mistrust(error) from None
            is_lost = is_connected and not isinstance(error, TimeoutError)
            raise AwayError(_plain(error, is_connected=is_connected), is_lost=is_lost) from None

    def _mistrust(self, error: ssl.SSLCertVerificationError) -> AccessError:
        ca = self.target.ca
        hint = f"{ca} has not the authority that has issued it" if ca else "name the file of its authority (ca)"
        return AccessError(f"the certificate of {self.target.where} is not trusted ({error.verify_message}): {hint}")

    def _asked(self, connection: Connection, address: Address, ask: Ask) -> Answer:
        query = urlencode(ask.params, doseq=True)
        path = f"{address.prefix}{ask.path}{'?' if query else ''}{query}"
        try:
            connection.request(
                ask.method, path, body=ask.content, headers={**self._headers, **address.headers, **ask.headers}
            )
        except ValueError:  # what is wrong with it is not said, for the error of Python has the token in it
            raise ProtocolError(
                f"{self.target.where} cannot be asked: the token, or something else in the request, has a character "
                "that cannot be sent"
            ) from None
        return Answer(connection.getresponse())

    def _checked(self, answer: Answer, began: float) -> Answer:
        if not 200 <= answer.status < 300:
            raise self._refusal(answer, began)
        if protocol.PROTOCOL_HEADER not in answer.headers:
            raise ProtocolError(f"what answers at {self.target.where} is no server of Air-Executor")
        return answer

    def _refusal(self, answer: Answer, began: float) -> Exception:
        body = _problem(answer)
        code = protocol.code_of(body)
        if answer.status in _AWAY and code not in _ANSWERS:
            why = str(body.get("detail") or f"it answers {answer.status} {answer.reason}")
            return AwayError(why, _retry_after(answer), is_busy=answer.status < 500)
        if not code:
            said = f"{answer.status} {answer.reason}".strip()
            return ProtocolError(f"what answers at {self.target.where} is no server of Air-Executor: it says {said}")
        self.outage.worked(began=began)  # it is there, whatever it says
        return protocol.error_of(body)

    def _agree(self, pool: Pool, timeouts: Timeouts, began: float) -> None:
        """Find out which version of the protocol is spoken.

        :raises ProtocolError: if none is, saying which side is to be upgraded.
        """
        with self._sent(pool, Ask("GET", "/v1/hello"), timeouts, began) as answer:
            hello = records.parsed_json(answer.content)
        check_protocol(hello, self.target.where)
        self.hello, self._was_reached = hello, True

    def _connected(self, timeouts: Timeouts) -> Pool:
        """The connections of this process; others if the socket of a tunnel is another one.

        :raises AwayError: if a tunnel cannot be made now.
        """
        path = self._tunnel(self.target.ssh, timeouts) if self.target.ssh is not None else self.target.socket
        with self._lock:
            if self._pool is None or path != self._socket:
                before, self._pool, self._socket = self._pool, Pool(Address(self.target, path)), path
                if before is not None:
                    before.close()
            return self._pool

    def _tunnel(self, target: SshTarget, timeouts: Timeouts) -> str:
        from airflow_provider_air_executor.remote import ssh

        command, base_path, embedded = self.target.command, self.target.base_path, self.target.embedded
        tunnel = ssh.tunnel_to(target, command=command, base_path=base_path, embedded=embedded)
        try:
            # A login, and the start of a server, for which pages do not wait.
            return tunnel.socket(timeouts.connect if timeouts is IMPATIENT else timeouts.read)
        except ConnectionError as error:
            # A first login takes longer than some wait, and is no outage.
            if isinstance(error, ssh.NotYetError) and timeouts is IMPATIENT and not self._was_reached:
                raise self.outage.unknown(str(error)) from None
            raise AwayError(str(error)) from None

    @functools.cached_property
    def _headers(self) -> dict[str, str]:
        return {
            protocol.PROTOCOL_HEADER: str(protocol.HIGHEST),
            "User-Agent": f"air-executor/{__version__}",
            **({"Authorization": f"Bearer {self.target.token}"} if self.target.token else {}),
        }


def check_protocol(hello: Any, where: str) -> None:
    """Check that a version of the protocol is spoken here and there.

    :raises ProtocolError: if none is, with both versions and what to upgrade.
    """
    try:
        lowest, highest = int(hello["protocol"]["lowest"]), int(hello["protocol"]["highest"])
        version = str(hello["version"])
    except (KeyError, TypeError, ValueError):
        raise ProtocolError(f"what answers at {where} is no server of Air-Executor") from None
    if lowest <= protocol.HIGHEST and highest >= protocol.LOWEST:
        return
    other, own = f"air-executor {version} at {where}", f"air-executor {__version__} here"
    older, newer = (own, other) if lowest > protocol.HIGHEST else (other, own)
    raise ProtocolError(
        f"{other} speaks the versions {lowest} to {highest} of the protocol, and {own} {protocol.LOWEST} to "
        f"{protocol.HIGHEST}: upgrade {older}, so that it understands {newer}"
    )


def url_path(*parts: str) -> str:
    """A path of the API."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _problem(answer: Answer) -> dict[str, Any]:
    try:
        body = json.loads(answer.content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after(answer: Answer) -> float:
    """For how many seconds an answer asks not to be asked again."""
    text = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        found = email.utils.parsedate_tz(text)
        with contextlib.suppress(ValueError, OverflowError):  # a date that there is not
            return max(0.0, email.utils.mktime_tz(found) - time.time()) if found else 0.0
        return 0.0


def _plain(error: Exception, *, is_connected: bool) -> str:
    """Why a server cannot be reached, in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time" if is_connected else "no connection in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return "the connection broke" if is_connected else str(error)


def _after_fork() -> None:
    for transport in list(_all):
        transport._begin()  # noqa: SLF001
        for begin in transport._forked:  # noqa: SLF001
            begin()


os.register_at_fork(after_in_child=_after_fork)
