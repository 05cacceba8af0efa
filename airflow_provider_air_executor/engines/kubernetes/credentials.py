"""The address of the API server and our credentials: from a kubeconfig file, or as a Pod of the cluster itself.

Both may change while the manager runs: a token or a certificate expires, and a new one is written.

The format is that of https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/, that of a Pod is described in
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import ssl
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.files import Stamp

log = logging.getLogger("air_executor.manager")

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_FILE_SECONDS = 60.0  # after which a token file is read again; the kubelet renews it long before it expires
_EARLY_SECONDS = 30.0  # before its end a token is renewed
_EXEC_SECONDS = 60.0

_Entry = tuple[dict[str, Any], Path]  # of a kubeconfig, and the directory of the file that has it
_Files = dict[Path, Stamp | None]


@dataclass
class ClusterCredentials:
    """The address of an API server, and the credentials for it.

    :param server: its address.
    :param tls: whom to trust, and the client certificate if there is one.
    :param trust: what ``tls`` was made of.
    :param namespace: that of Pods which do not say.
    :param token: a bearer token.
    :param token_file: a file that holds one, and is written anew when it expires.
    :param exec_config: a program that prints one, as kubeconfig describes it.
    :param basic: user and password.
    :param server_name: the name that the certificate of the server is for, if not the one in its address.
    :param proxy: the address of a proxy on the way.
    :param again: reads anew what this was made of.
    :param files: what it was made of, as it was before it was read.
    """

    server: str
    tls: ssl.SSLContext = field(compare=False)
    namespace: str = "default"
    token: str = ""
    token_file: Path | None = None
    exec_config: Mapping[str, Any] | None = None
    basic: tuple[str, str] | None = None
    server_name: str | None = None
    proxy: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    trust: tuple[object, ...] = ()
    again: Callable[[], ClusterCredentials] | None = field(default=None, compare=False)
    files: _Files = field(default_factory=dict, compare=False)
    _must_read: bool = field(default=False, compare=False)
    _good_until: float = field(default=0.0, compare=False)

    @property
    def authorization(self) -> str | None:
        """The header of this name."""
        if self.basic is not None:
            return "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return f"Bearer {self.token}" if self.token else None

    @property
    def way(self) -> tuple[object, ...]:
        """The values that a connection depends on."""
        return self.server, self.server_name, self.proxy, self.trust

    @property
    def is_outdated(self) -> bool:
        """Whether the files should be read again: one has changed, or the API server did not accept the credentials."""
        return self.again is not None and (self._must_read or self._has_changed())

    def _has_changed(self) -> bool:
        return any(_stamp(path) != stamp for path, stamp in self.files.items())

    def read_again(self) -> ClusterCredentials:
        """The credentials that the files describe now; these if they are the same, or if the files describe none.

        A connection need not be made anew if the new ones have the same ``tls``.
        """
        has_changed, self._must_read = self._has_changed(), False
        self.files = {path: _stamp(path) for path in self.files}
        try:
            found = self.again() if self.again is not None else self
        except (OSError, SettingsError) as error:
            self._must_read = True  # what is missing may be none of the files that are known
            if has_changed:
                log.warning("Kubernetes: %s; going on with what was read before", error)
            return self
        if found == self:
            self.files = found.files
            return self
        if found.way == self.way:
            found.tls = self.tls
        return found

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
        """The API server did not accept the credentials."""
        self._good_until, self._must_read = 0.0, True

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


def find_credentials(
    environment: Mapping[str, str], *, kubeconfig: str | None = None, context: str | None = None
) -> ClusterCredentials:
    """Find the API server: by the file that is given, ``KUBECONFIG``, as a Pod, or by ``~/.kube/config``.

    :param context: the one of the file to use; default: its current one.
    :raises SettingsError: saying what is missing or wrong.
    """
    words = (kubeconfig or environment.get("KUBECONFIG", "")).split(":")
    paths = [Path(word).expanduser().absolute() for word in words if word]
    if not paths and environment.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").exists():
        return _of_this_pod(environment)
    paths = paths or [Path(environment.get("HOME", "/")) / ".kube" / "config"]
    return _of_files(paths, context, environment)


def _of_files(paths: Sequence[Path], context: str | None, environment: Mapping[str, str]) -> ClusterCredentials:
    try:
        return _read_files(paths, context, environment)
    except SettingsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        where = ":".join(str(path) for path in paths)
        why = str(error) if isinstance(error, OSError) else repr(error)
        raise SettingsError(f"the kubeconfig {where} cannot be used: {why}") from error


def _of_this_pod(environment: Mapping[str, str]) -> ClusterCredentials:
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    address = f"[{host}]" if ":" in host else host
    namespace, authority = SERVICE_ACCOUNT / "namespace", SERVICE_ACCOUNT / "ca.crt"
    files: _Files = {}
    trusted = _read(authority, files)
    return ClusterCredentials(
        f"https://{address}:{port}",
        _context(cadata=trusted.decode()),
        namespace.read_text().strip() if namespace.exists() else "default",
        token_file=SERVICE_ACCOUNT / "token",
        trust=(trusted,),
        again=partial(_of_this_pod, environment),
        files=files,
    )


def _stamp(path: Path) -> Stamp | None:
    """The stamp of a regular file; of a link, that of its target."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp.of(status) if stat.S_ISREG(status.st_mode) else None


def _can_be_read_again(path: Path) -> bool:
    return path.is_file() or not path.exists()  # and is no pipe


def _read(path: Path, files: _Files) -> bytes:
    """The content of a file; its stamp is remembered first."""
    files[path] = _stamp(path)
    return path.read_bytes()


def _context(*, cadata: str | None) -> ssl.SSLContext:
    """How the API server is known. As kubectl does, it takes certificates that Python 3.13 calls not strict enough."""
    tls = ssl.create_default_context(cadata=cadata)
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return tls


def _read_files(paths: Sequence[Path], wanted: str | None, environment: Mapping[str, str]) -> ClusterCredentials:
    """The credentials that one or more kubeconfig files describe; of two entries of a name the first one counts.

    When they are read again they are those of the same context, whichever is current then: Pods are in that cluster.
    """
    files: _Files = {path: _stamp(path) for path in paths}
    found: dict[str, dict[str, _Entry]] = {"clusters": {}, "users": {}, "contexts": {}}
    current = wanted
    for path in (path for path in paths if path.exists() or len(paths) == 1):
        content = yaml.safe_load(_read(path, files)) or {}
        current = current or content.get("current-context")
        for kind, entries in found.items():
            for entry in content.get(kind) or ():
                entries.setdefault(entry["name"], (entry[kind[:-1]] or {}, path.parent))
    context, _ = _entry(found, "contexts", current)
    cluster, _ = of_cluster = _entry(found, "clusters", context.get("cluster"))
    user, user_directory = of_user = _entry(found, "users", context["user"]) if context.get("user") else ({}, Path())
    if "auth-provider" in user:
        raise SettingsError("the user's auth-provider is not supported, as by Kubernetes itself since 1.26; use exec")
    exec_config = user.get("exec")
    if exec_config is not None and "/" in str(exec_config.get("command", "")):
        exec_config = {**exec_config, "command": str(user_directory / exec_config["command"])}
    token_file = user.get("tokenFile")
    tls, trust = _tls(of_cluster, of_user, files)
    return ClusterCredentials(
        str(cluster["server"]).rstrip("/"),
        tls,
        context.get("namespace") or "default",
        token=user.get("token") or "",
        token_file=user_directory / token_file if token_file else None,
        exec_config=exec_config,
        basic=(user["username"], user["password"]) if user.get("username") else None,
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
        environment=dict(environment),
        trust=trust,
        again=partial(_of_files, paths, current, environment) if all(map(_can_be_read_again, paths)) else None,
        files=files,
    )


def _entry(found: Mapping[str, Mapping[str, _Entry]], kind: str, name: str | None) -> _Entry:
    if not name or name not in found[kind]:
        known = ", ".join(sorted(found[kind])) or "none"
        raise SettingsError(f"there is no {kind[:-1]} {name!r} in the kubeconfig; there are: {known}")
    return found[kind][name]


def _tls(cluster: _Entry, user: _Entry, files: _Files) -> tuple[ssl.SSLContext, tuple[object, ...]]:
    """The TLS context with our own certificate, and the files that it was made of."""
    authority = _content(cluster, "certificate-authority", files)
    tls = _context(cadata=authority.decode() if authority else None)
    is_insecure = bool(cluster[0].get("insecure-skip-tls-verify"))
    if is_insecure:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    certificate = _content(user, "client-certificate", files)
    key = _content(user, "client-key", files)
    if certificate and key:
        _load_client_certificate(tls, certificate, key)
    return tls, (authority, is_insecure, certificate, key)


def _content(of: _Entry, key: str, files: _Files) -> bytes:
    """The content of a field of an entry, or of the file that the entry names for it."""
    entry, directory = of
    if entry.get(f"{key}-data"):
        try:
            return base64.b64decode(entry[f"{key}-data"], validate=True)
        except binascii.Error as error:
            raise SettingsError(f"{key}-data in the kubeconfig is not base64: {error}") from None
    return _read(directory / entry[key], files) if entry.get(key) else b""


def _load_client_certificate(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """The ssl module reads a key from a file only, so it gets one for a moment."""
    descriptor, path = tempfile.mkstemp()  # mode 0600
    try:
        os.write(descriptor, certificate + b"\n" + key)
        tls.load_cert_chain(path)
    finally:
        os.close(descriptor)
        os.unlink(path)
