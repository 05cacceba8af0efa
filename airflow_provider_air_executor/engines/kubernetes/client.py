"""The few requests to the API server of Kubernetes that running Pods takes: create, delete, list, watch, log, Secrets.

https://kubernetes.io/docs/reference/using-api/api-concepts/ describes them. There is no version in them that could not
match: Pods are ``v1`` since 2015.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from airflow_provider_air_executor.engines.kubernetes.credentials import ClusterCredentials
from airflow_provider_air_executor.engines.kubernetes.pod_status import quantity
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.models import printable

log = logging.getLogger("air_executor.manager")

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_WATCH_SECONDS = 60  # after which the API server ends a watch, and another one goes on
_IDLE_SECONDS = 60.0  # an API server closes a connection that has been idle for 90 s
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, and how often


class ApiError(Exception):
    """The API server refuses something.

    :param status: the HTTP status.
    :param message: in its own words.
    :param reason: in one word, ``AlreadyExists`` for instance.
    """

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        if self.status == 403 and "exceeded quota" in str(self):
            return not _is_beyond_any_use(str(self))
        return self.status in (401, 408, 429) or self.status >= 500


_QUOTA = re.compile(r"exceeded quota: \S+, requested: (?P<requested>.*), used: .*, limited: (?P<limited>.*)")


def _is_beyond_any_use(refusal: str) -> bool:
    """Whether a quota refuses what it would refuse as well if nothing else used it.

    :param refusal: ends with what is requested, used and allowed: ``requests.cpu=2,requests.memory=1Gi``.
    """
    found = _QUOTA.search(refusal)
    if not found:
        return False
    requested, limited = (dict(item.partition("=")[::2] for item in text.split(",")) for text in found.groups())
    return any(quantity(limited.get(name)) < quantity(value) < math.inf for name, value in requested.items())


class UnreachableError(Exception):
    """The API server does not answer, or not to the end."""


class KubernetesClient:
    """Sends requests to an API server, within one event loop.

    :param credentials: the address of the server, and ours.
    :raises SettingsError: if its address or that of a proxy cannot be one.
    """

    def __init__(self, credentials: ClusterCredentials) -> None:
        self._credentials = credentials
        self._renewing = asyncio.Lock()
        self._proxy = _proxy_for(credentials)
        self._connections: _Connections | None = None  # there is no event loop yet

    async def close(self) -> None:
        """Close all connections."""
        if self._connections is not None:
            await self._connections.session.close()

    # All of these raise ApiError and UnreachableError.

    async def create_pod(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create a Pod."""
        return await self._ask("POST", _pods(manifest["metadata"]["namespace"]), json=manifest)

    async def get_pod(self, namespace: str, name: str) -> dict[str, Any]:
        """One Pod."""
        return await self._ask("GET", f"{_pods(namespace)}/{quote(name)}")

    async def delete_pod(self, namespace: str, name: str, *, uid: str | None = None, grace: int | None = None) -> None:
        """Delete a Pod: SIGTERM to it, and SIGKILL after a time.

        :param uid: delete it only if it is this one.
        :param grace: that time in seconds; default: what the Pod says itself.
        """
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        await self._ask("DELETE", f"{_pods(namespace)}/{quote(name)}", json=options)

    async def list_pods(self, namespace: str, selector: str) -> tuple[list[dict[str, Any]], str]:
        """All Pods that a label selector names, and the version from which a watch goes on."""
        found = await self._ask("GET", _pods(namespace), params={"labelSelector": selector})
        return found.get("items") or [], found["metadata"]["resourceVersion"]

    async def create_secret(self, manifest: dict[str, Any]) -> None:
        """Create a Secret."""
        await self._ask("POST", _secrets(manifest["metadata"]["namespace"]), json=manifest)

    async def replace_secret(self, manifest: dict[str, Any]) -> None:
        """Replace a Secret that is there."""
        metadata = manifest["metadata"]
        await self._ask("PUT", f"{_secrets(metadata['namespace'])}/{quote(metadata['name'])}", json=manifest)

    async def list_nodes(self) -> list[dict[str, Any]]:
        """All nodes of the cluster."""
        return (await self._ask("GET", "/api/v1/nodes")).get("items") or []

    async def list_warnings(self, namespace: str, uid: str) -> list[str]:
        """The latest warnings about a Pod, as the components of Kubernetes describe them."""
        fields = {"fieldSelector": f"involvedObject.uid={uid},type=Warning"}
        events = (await self._ask("GET", f"/api/v1/namespaces/{quote(namespace)}/events", params=fields)).get("items")
        return [f"{event.get('reason')}: {event.get('message')}" for event in events or ()]

    async def watch_pods(
        self, namespace: str, selector: str, version: str
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Changes of Pods since a version: the kind of change and the Pod, until the API server has enough.

        :raises ApiError: of status 410 if the version is too old, so that they must be listed again.
        """
        params = {
            "labelSelector": selector,
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        patience = _WATCH_SECONDS + _ANSWER_SECONDS
        async with self._request("GET", _pods(namespace), params=params, patience=patience) as response:
            async for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code", 500), event["object"])
                yield event["type"], event["object"]

    @asynccontextmanager
    async def open_log(
        self, namespace: str, name: str, container: str, *, follow: bool, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The output of a container, from its beginning.

        :param follow: whether to go on while it runs.
        :param limit: how many bytes at most.
        """
        params = {"container": container}
        if follow:
            params["follow"] = "true"
        if limit is not None:
            params["limitBytes"] = str(limit)
        path = f"{_pods(namespace)}/{quote(name)}/log"
        patience = None if follow else _ANSWER_SECONDS
        async with self._request("GET", path, params=params, patience=patience) as response:
            yield response.content.iter_any()

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        async with self._request(method, path, patience=_ANSWER_SECONDS, **request) as response:
            text = await response.read()
            try:
                content = json.loads(text) if text else {}
            except ValueError as error:
                raise self._unreachable(error) from error
            return content if isinstance(content, dict) else {}

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, patience: float | None, **request: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and read its answer from what is given.

        :param patience: seconds within which the next piece of the answer must come; None: for ever.
        """
        await self._renew_credentials()
        if self._connections is None:
            self._connections = _Connections(self._credentials)
        value, name = self._credentials.authorization, self._credentials.server_name
        async with self._connections.in_use() as session:
            try:
                response = await session.request(
                    method,
                    self._credentials.server.rstrip("/") + path,
                    headers={"Authorization": value} if value else {},
                    server_hostname=name or None,
                    proxy=self._proxy,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=patience),
                    **request,
                )
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:  # a token may hold a line break
                raise self._unreachable(error) from error
            async with response:
                try:
                    if response.status >= 400:
                        await self._refused(response.status, await response.read())
                    yield response
                except aiohttp.ClientError as error:  # other errors are those of the caller
                    raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(f"the API server {self._credentials.server} does not answer: {error!r}")

    async def _renew_credentials(self) -> None:
        """Have what a request needs so that the server knows us, and we know it."""
        async with self._renewing:
            if self._credentials.is_outdated:
                await self._read_credentials_again()
            if self._credentials.must_renew:
                try:
                    await asyncio.to_thread(self._credentials.renew)
                except OSError as error:
                    server = self._credentials.server
                    raise UnreachableError(f"there are no credentials for {server}: {error}") from error

    async def _read_credentials_again(self) -> None:
        found = await asyncio.to_thread(self._credentials.read_again)
        if found.tls is not self._credentials.tls:
            try:
                self._proxy = _proxy_for(found)
            except SettingsError as error:
                log.warning("Kubernetes: %s; going on with what was read before", error)
                return
            log.info("Kubernetes: the API server is now asked as the changed kubeconfig says: %s", found.server)
            await self._reconnect()
        self._credentials = found

    async def _reconnect(self) -> None:
        """Open new connections for what is asked from now on; what is being read is read to its end."""
        before, self._connections = self._connections, None
        if before is not None:
            await before.retire()

    async def _refused(self, status: int, text: bytes) -> NoReturn:
        try:
            content = json.loads(text)
        except ValueError:
            content = {"message": text.decode(errors="replace")}
        if status == 401:
            self._credentials.forget()
            await self._reconnect()  # a new client certificate counts for new connections only
        raise _error(status, content)


class _Connections:
    """Those to one API server, by one way, within one event loop."""

    def __init__(self, credentials: ClusterCredentials) -> None:
        connector = aiohttp.TCPConnector(
            ssl=credentials.tls, limit=0, keepalive_timeout=_IDLE_SECONDS, socket_factory=_make_socket
        )
        headers = {"User-Agent": "air-executor", "Accept": "application/json"}
        self.session = aiohttp.ClientSession(connector=connector, headers=headers)
        self._users = 0
        self._is_retired = False

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The session for a request; it is not closed before the request is over."""
        self._users += 1
        try:
            yield self.session
        finally:
            self._users -= 1
            if self._is_retired:
                await self.retire()

    async def retire(self) -> None:
        """Close them when the last request is over."""
        self._is_retired = True
        if not self._users:
            await self.session.close()


def _make_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that finds out if the other side is gone without a word: a followed log may be silent for days."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def _proxy_for(credentials: ClusterCredentials) -> str | None:
    """The proxy by which the API server is asked: that of the kubeconfig, or that of the environment.

    :raises SettingsError: if its address, or that of the API server, cannot be one.
    """
    try:
        server = _address(credentials.server)
    except ValueError as error:
        raise SettingsError(f"the API server {credentials.server} cannot be asked: {error}") from None
    proxies = {} if proxy_bypass(server.authority) else getproxies()
    proxy = credentials.proxy or proxies.get(server.scheme) or proxies.get("all")
    try:
        return str(_address(proxy)) if proxy else None
    except ValueError as error:
        why = f"the API server {credentials.server} cannot be asked by the proxy {proxy}: {error}"
        raise SettingsError(why) from None


def _address(text: str) -> URL:
    """The address of a server.

    :raises ValueError: if it cannot be one.
    """
    found = URL(text)
    if found.scheme not in {"http", "https"} or not found.host:
        raise ValueError("its address must begin with https:// or http://, and have a host")
    return found


def _pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/pods"


def _secrets(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/secrets"


def _error(status: int, content: Any) -> ApiError:
    content = content if isinstance(content, dict) else {}
    message = printable(str(content.get("message") or f"HTTP status {status}"))
    return ApiError(status, message[:2000], str(content.get("reason") or ""))


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
