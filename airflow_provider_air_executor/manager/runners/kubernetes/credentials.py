"""Where the API server is, and who we are: from a kubeconfig file, or as a Pod of the cluster itself.

The format is that of https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/, what a Pod finds stands in
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_air_executor.exceptions import SettingsError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_FILE_SECONDS = 60.0  # after which a token file is read again; the kubelet renews it long before it expires
_EARLY_SECONDS = 30.0  # before its end a token is renewed
_EXEC_SECONDS = 60.0


@dataclass
class Access:
    """How to reach an API server.

    :param server: its address.
    :param tls: whom to trust, and the client certificate if there is one.
    :param namespace: that of Pods which do not say.
    :param token: a bearer token.
    :param token_file: a file that holds one, and is written anew when it expires.
    :param exec_config: a program that prints one, as kubeconfig describes it.
    :param basic: user and password.
    :param server_name: the name that the certificate of the server is for, if not the one in its address.
    :param proxy: the address of a proxy on the way.
    """

    server: str
    tls: ssl.SSLContext
    namespace: str = "default"
    token: str = ""
    token_file: Path | None = None
    exec_config: Mapping[str, Any] | None = None
    basic: tuple[str, str] | None = None
    server_name: str | None = None
    proxy: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    _good_until: float = 0.0

    @property
    def authorization(self) -> str | None:
        """The header of this name."""
        if self.basic is not None:
            return "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return f"Bearer {self.token}" if self.token else None

    @property
    def must_renew(self) -> bool:
        """Whether it is time to :meth:`renew` the token."""
        return (self.token_file or self.exec_config) is not None and time.time() >= self._good_until

    def renew(self) -> None:
        """Get a new token. It may take a while.

        :raises OSError: if there is none now.
        """
        if self.token_file is not None:
            self.token = self.token_file.read_text().strip()
            self._good_until = time.time() + _TOKEN_FILE_SECONDS
        elif self.exec_config is not None:
            self._run_program(self.exec_config)

    def forget(self) -> None:
        """The API server did not accept the token."""
        self._good_until = 0.0

    def _run_program(self, config: Mapping[str, Any]) -> None:
        """Ask a program for a token, see https://kubernetes.io/docs/reference/config-api/client-authentication.v1/."""
        version = str(config.get("apiVersion", ""))
        words = [str(config["command"]), *(str(word) for word in config.get("args") or ())]
        spec = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        more = {str(item["name"]): str(item["value"]) for item in config.get("env") or ()}
        environment = {**self.environment, **more, "KUBERNETES_EXEC_INFO": json.dumps(spec)}
        try:
            done = subprocess.run(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_EXEC_SECONDS,
                check=False,  # the manager may have reaped it: what it prints is what counts
            )
            status = json.loads(done.stdout)["status"]
            until = status.get("expirationTimestamp")
            good_until = datetime.fromisoformat(until).timestamp() - _EARLY_SECONDS if until else float("inf")
            if status.get("clientCertificateData"):
                _load_client_certificate(
                    self.tls, status["clientCertificateData"].encode(), status["clientKeyData"].encode()
                )
            self.token = status.get("token", "")
        except (ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
            raise OSError(f"{words[0]} did not print the credentials it is asked for: {error!r}") from error
        self._good_until = good_until


def find_access(environment: Mapping[str, str], *, kubeconfig: str | None = None, context: str | None = None) -> Access:
    """Find the API server: by the file that is given, ``KUBECONFIG``, as a Pod, or by ``~/.kube/config``.

    :param context: the one of the file to use; default: its current one.
    :raises SettingsError: saying what is missing or wrong.
    """
    paths = [Path(word).expanduser() for word in (kubeconfig or environment.get("KUBECONFIG", "")).split(":") if word]
    if not paths and environment.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").exists():
        return _of_this_pod(environment)
    paths = paths or [Path(environment.get("HOME", "/")) / ".kube" / "config"]
    try:
        return _of_files(paths, context, environment)
    except SettingsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        where = ":".join(str(path) for path in paths)
        why = str(error) if isinstance(error, OSError) else repr(error)
        raise SettingsError(f"the kubeconfig {where} cannot be used: {why}") from error


def _of_this_pod(environment: Mapping[str, str]) -> Access:
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    address = f"[{host}]" if ":" in host else host
    namespace = SERVICE_ACCOUNT / "namespace"
    return Access(
        f"https://{address}:{port}",
        _context(cafile=str(SERVICE_ACCOUNT / "ca.crt")),
        namespace.read_text().strip() if namespace.exists() else "default",
        token_file=SERVICE_ACCOUNT / "token",
    )


def _context(*, cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """How the API server is known. As kubectl does, it takes certificates that Python 3.13 calls not strict enough."""
    tls = ssl.create_default_context(cafile=cafile, cadata=cadata)
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return tls


def _of_files(paths: list[Path], wanted: str | None, environment: Mapping[str, str]) -> Access:
    """The access that one or more kubeconfig files describe; of two entries of a name the first one counts."""
    found: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
    current = wanted
    for path in (path for path in paths if path.exists() or len(paths) == 1):
        content = yaml.safe_load(path.read_text()) or {}
        current = current or content.get("current-context")
        for kind, entries in found.items():
            for entry in content.get(kind) or ():
                entries.setdefault(entry["name"], (entry[kind[:-1]] or {}, path.parent))
    context, _ = _entry(found, "contexts", current)
    cluster, cluster_directory = _entry(found, "clusters", context.get("cluster"))
    user, user_directory = _entry(found, "users", context["user"]) if context.get("user") else ({}, Path())
    if "auth-provider" in user:
        raise SettingsError("the user's auth-provider is not supported, as by Kubernetes itself since 1.26; use exec")
    exec_config = user.get("exec")
    if exec_config is not None and "/" in str(exec_config.get("command", "")):
        exec_config = {**exec_config, "command": str(user_directory / exec_config["command"])}
    token_file = user.get("tokenFile")
    return Access(
        str(cluster["server"]).rstrip("/"),
        _tls(cluster, cluster_directory, user, user_directory),
        context.get("namespace") or "default",
        token=user.get("token") or "",
        token_file=user_directory / token_file if token_file else None,
        exec_config=exec_config,
        basic=(user["username"], user["password"]) if user.get("username") else None,
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
        environment=dict(environment),
    )


def _entry(
    found: Mapping[str, Mapping[str, tuple[dict[str, Any], Path]]], kind: str, name: str | None
) -> tuple[dict[str, Any], Path]:
    if not name or name not in found[kind]:
        known = ", ".join(sorted(found[kind])) or "none"
        raise SettingsError(f"there is no {kind[:-1]} {name!r} in the kubeconfig; there are: {known}")
    return found[kind][name]


def _tls(
    cluster: dict[str, Any], cluster_directory: Path, user: dict[str, Any], user_directory: Path
) -> ssl.SSLContext:
    authority = _content(cluster, "certificate-authority", cluster_directory)
    tls = _context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    certificate = _content(user, "client-certificate", user_directory)
    key = _content(user, "client-key", user_directory)
    if certificate and key:
        _load_client_certificate(tls, certificate, key)
    return tls


def _content(entry: dict[str, Any], key: str, directory: Path) -> bytes:
    """What an entry holds itself, or names a file for."""
    if entry.get(f"{key}-data"):
        try:
            return base64.b64decode(entry[f"{key}-data"], validate=True)
        except binascii.Error as error:
            raise SettingsError(f"{key}-data in the kubeconfig is not base64: {error}") from None
    return (directory / entry[key]).read_bytes() if entry.get(key) else b""


def _load_client_certificate(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """The ssl module reads a key from a file only, so it gets one for a moment."""
    descriptor, path = tempfile.mkstemp()  # mode 0600
    try:
        os.write(descriptor, certificate + b"\n" + key)
        tls.load_cert_chain(path)
    finally:
        os.close(descriptor)
        os.unlink(path)
