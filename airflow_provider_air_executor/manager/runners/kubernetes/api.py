"""The few requests to the API server of Kubernetes that running Pods takes: create, delete, list, watch, log.

https://kubernetes.io/docs/reference/using-api/api-concepts/ describes them. There is no version in them that could not
match: Pods are ``v1`` since 2015.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.models import printable
from airflow_provider_air_executor.manager.runners.kubernetes.credentials import Access
from airflow_provider_air_executor.manager.runners.kubernetes.pods import quantity
from airflow_provider_air_executor.manager.runners.kubernetes.transport import Transport

log = logging.getLogger("air_executor.manager")

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_WATCH_SECONDS = 60  # after which the API server ends a watch, and another one goes on
_KEEP_SECONDS = 60.0  # an API server lets go of a connection that has been idle for 90 s


for _name in ("httpx", "httpcore"):  # they tell of each request
    logging.getLogger(_name).setLevel(logging.WARNING)


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


class Api:
    """Asks an API server, within one event loop.

    :param access: where it is, and who we are.
    :raises SettingsError: if its address or that of a proxy cannot be one.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._renewing = asyncio.Lock()
        self._client, self._transport = _connect(access)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    # All of them raise ApiError and UnreachableError.

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

    async def list_nodes(self) -> list[dict[str, Any]]:
        """All nodes of the cluster."""
        return (await self._ask("GET", "/api/v1/nodes")).get("items") or []

    async def list_warnings(self, namespace: str, uid: str) -> list[str]:
        """What went wrong with a Pod lately, in the words of who tried."""
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
        async with self._stream(_pods(namespace), params, patience=patience) as response:
            async for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code", 500), event["object"])
                yield event["type"], event["object"]

    @asynccontextmanager
    async def open_log(
        self, namespace: str, name: str, container: str, *, follow: bool, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """What a container has printed, from its beginning.

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
        async with self._stream(path, params, patience=patience) as response:
            yield _bytes(response)

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        how = {**await self._credentials(), **request}
        try:
            response = await self._client.request(method, path, **how)
            content = response.json() if response.content else {}
        except (httpx.HTTPError, ValueError) as error:
            raise UnreachableError(f"the API server {self._access.server} does not answer: {error!r}") from error
        self._check(response.status_code, content)
        return content if isinstance(content, dict) else {}

    @asynccontextmanager
    async def _stream(
        self, path: str, params: dict[str, str], *, patience: float | None
    ) -> AsyncIterator[httpx.Response]:
        how = {**await self._credentials(), "params": params}
        how["timeout"] = httpx.Timeout(patience, connect=_CONNECT_SECONDS)
        try:
            async with self._client.stream("GET", path, **how) as response:
                if response.status_code >= 400:
                    text = await response.aread()
                    try:
                        content = json.loads(text)
                    except ValueError:
                        content = {"message": text.decode(errors="replace")}
                    self._check(response.status_code, content)
                yield response
        except httpx.HTTPError as error:
            raise UnreachableError(f"the API server {self._access.server} does not answer: {error!r}") from error

    async def _credentials(self) -> dict[str, Any]:
        """What a request needs so that the server knows us, and we know it."""
        async with self._renewing:
            if self._access.is_outdated:
                await self._read_access_again()
            if self._access.must_renew:
                try:
                    await asyncio.to_thread(self._access.renew)
                except OSError as error:
                    raise UnreachableError(f"there are no credentials for {self._access.server}: {error}") from error
        value, name = self._access.authorization, self._access.server_name
        return {
            "headers": {"Authorization": value} if value else {},
            "extensions": {"sni_hostname": name} if name else {},
        }

    async def _read_access_again(self) -> None:
        found = await asyncio.to_thread(self._access.read_again)
        if found.tls is not self._access.tls:
            try:
                client, transport = _connect(found)
            except SettingsError as error:
                log.warning("Kubernetes: %s; going on with what was read before", error)
                return
            log.info("Kubernetes: the API server is now asked as the changed kubeconfig says: %s", found.server)
            before, self._client, self._transport = self._client, client, transport
            await before.aclose()  # what is being read by our own transport is read to its end
        self._access = found

    def _check(self, status: int, content: Any) -> None:
        if status == 401:
            self._access.forget()
            if self._transport is not None:  # a new client certificate counts for new connections only
                self._transport.let_go()
        if status >= 400:
            raise _error(status, content)


def _connect(access: Access) -> tuple[httpx.AsyncClient, Transport | None]:
    """A client, and our own transport if it has that.

    :raises SettingsError: if the address of the API server or of a proxy cannot be one.
    """
    if urlsplit(access.server).scheme not in {"http", "https"}:
        raise SettingsError(f"the API server {access.server} cannot be asked: its address must begin with https://")
    transport = None if _is_behind_proxy(access) else Transport(access.tls, keep=_KEEP_SECONDS)
    try:
        client = httpx.AsyncClient(
            base_url=access.server,
            transport=transport,
            verify=access.tls,
            proxy=access.proxy,
            limits=httpx.Limits(keepalive_expiry=_KEEP_SECONDS),
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            headers={"User-Agent": "air-executor", "Accept": "application/json"},
        )
    except (ValueError, httpx.InvalidURL, ImportError) as error:
        way = f" by the proxy {access.proxy}" if access.proxy else ""
        raise SettingsError(f"the API server {access.server} cannot be asked{way}: {error}") from error
    return client, transport


def _is_behind_proxy(access: Access) -> bool:
    """Whether the API server is asked by way of a proxy: that of the kubeconfig, or that of the environment."""
    server = urlsplit(access.server)
    names = getproxies().keys() & {server.scheme, "all"}
    return access.proxy is not None or (bool(names) and not proxy_bypass(server.netloc))


def _pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/pods"


def _error(status: int, content: Any) -> ApiError:
    content = content if isinstance(content, dict) else {}
    message = printable(str(content.get("message") or f"HTTP status {status}"))
    return ApiError(status, message[:2000], str(content.get("reason") or ""))


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


async def _bytes(response: httpx.Response) -> AsyncIterator[bytes]:
    async for chunk in response.aiter_bytes():
        yield chunk
