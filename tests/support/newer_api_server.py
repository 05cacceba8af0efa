"""An API server of a newer Kubernetes than that of the cluster, without Pods: ``build_newer_api_server.sh`` builds it.

Lists, watches, versions and errors of custom resources are served by the code that serves those of Pods in a whole API
server. So there is a resource ``pods`` in a group of its own, and clients are made to ask for that.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.kubernetes_cluster import etcd_flags, make_certificates
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, wait_until

PROGRAM = os.environ.get("AIR_EXECUTOR_TEST_NEWER_API_SERVER", "")
GROUP = "air-executor.test"
_API = f"/apis/{GROUP}/v1"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"pods.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "pods", "singular": "pod", "kind": "Pod", "listKind": "PodList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
# Admission plugins that wait for objects which a whole API server alone has.
_WITHOUT = (
    "NamespaceLifecycle",
    *(f"{kind}Admission{by}" for kind in ("Mutating", "Validating") for by in ("Webhook", "Policy")),
)


def missing() -> list[str]:
    """The programs that are not there."""
    found = [] if PROGRAM and os.access(PROGRAM, os.X_OK) else ["an API server of a newer Kubernetes"]
    return found + ([] if shutil.which("etcd") else ["etcd"])


def as_custom_resources(send: Callable[..., Any]) -> Callable[..., Any]:
    """The method of :class:`KubernetesClient` that sends a request, made to ask for custom resources in place of Pods.

    :param send: the method as it is.
    """

    def sent(client: object, method: str, path: str, **request: Any) -> Any:
        content = request.get("json")
        if isinstance(content, dict) and content.get("kind") == "Pod":
            request["json"] = {**content, "apiVersion": f"{GROUP}/v1"}
        return send(client, method, path.replace("/api/v1", _API, 1), **request)

    return sent


class NewerApiServer:
    """The API server with an etcd of its own, in a directory of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="air-executor-newer-api-"))
        self.kubeconfig = self.directory / "kubeconfig"
        self._port = free_port()
        self._etcd = f"http://127.0.0.1:{free_port()}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> NewerApiServer:
        """Start it, and wait until there is the resource ``pods``."""
        make_certificates(self.directory)
        self.kubeconfig.write_text(self._kubeconfig(f"https://127.0.0.1:{self._port}"))
        # The address of a whole API server, which would know users, their rights, and namespaces. There is none.
        (self.directory / "nowhere").write_text(self._kubeconfig("http://127.0.0.1:1"))
        self._run("etcd", *etcd_flags(self.directory / "etcd", self._etcd))
        self.start_api_server()
        self.ask("POST", _DEFINITIONS, _DEFINITION)

        def is_served() -> bool:
            status = self.ask("GET", f"{_DEFINITIONS}/pods.{GROUP}").get("status") or {}
            conditions = {item["type"]: item["status"] for item in status.get("conditions") or ()}
            return conditions.get("Established") == "True"

        wait_until(is_served, what="its resource is served")
        return self

    def start_api_server(self, *flags: str) -> None:
        """Start the API server, and wait until it answers."""
        nowhere = self.directory / "nowhere"
        self._run(
            PROGRAM,
            f"--etcd-servers={self._etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self.directory}/server.crt",
            f"--tls-private-key-file={self.directory}/server.key",
            f"--client-ca-file={self.directory}/ca.crt",
            f"--kubeconfig={nowhere}",
            f"--authentication-kubeconfig={nowhere}",
            "--authentication-skip-lookup",
            f"--authorization-kubeconfig={nowhere}",
            f"--disable-admission-plugins={','.join(_WITHOUT)}",
            "--enable-priority-and-fairness=false",
            *flags,
        )

        # Not /readyz: that waits for the whole API server.
        self._wait_for("/readyz/poststarthook/crd-informer-synced")

    def wait_for_pods(self) -> None:
        """Wait until the API server has read all Pods: it lists none before."""
        self._wait_for(f"{_API}/pods")

    def _wait_for(self, path: str) -> None:
        def answers() -> bool:
            try:
                return bool(self._send("GET", path))
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                pass
            return False

        wait_until(answers, what=f"the API server answers: {path}")

    def stop_api_server(self) -> None:
        """Kill the API server."""
        self._stop(PROGRAM)

    def compact(self) -> None:
        """Have the database forget all versions but the last."""
        version = json.loads(self._post_to_etcd("kv/range", {"key": base64.b64encode(b"x").decode()}))["header"]
        self._post_to_etcd("kv/compaction", {"revision": version["revision"], "physical": True})

    def _post_to_etcd(self, path: str, content: object) -> bytes:
        request = urllib.request.Request(f"{self._etcd}/v3/{path}", json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return bytes(answer.read())

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """All Pods of a namespace."""
        return list(self.ask("GET", f"{_API}/namespaces/{namespace}/pods")["items"])

    def report(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        """Change the status of a Pod in one step, as a kubelet does."""
        metadata = pod["metadata"]
        path = f"{_API}/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        self.ask("PATCH", path, {"status": status}, kind="application/merge-patch+json")

    def ask(self, method: str, path: str, content: object = None, *, kind: str = "application/json") -> Any:
        """Send a request, and read the answer.

        :param kind: of the content.
        """
        return json.loads(self._send(method, path, content, kind))

    def _send(self, method: str, path: str, content: object = None, kind: str = "application/json") -> bytes:
        tls = ssl.create_default_context(cafile=self.directory / "ca.crt")
        tls.load_cert_chain(self.directory / "server.crt", self.directory / "server.key")
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"https://127.0.0.1:{self._port}{path}", data, method=method)
        request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, context=tls, timeout=PATIENCE) as answer:
            return bytes(answer.read())

    def _kubeconfig(self, server: str) -> str:
        user = {"client-certificate": f"{self.directory}/server.crt", "client-key": f"{self.directory}/server.key"}
        cluster = {"server": server, "certificate-authority": f"{self.directory}/ca.crt"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "user", "user": user}],
        }
        return json.dumps(content)

    def close(self) -> None:
        """End everything."""
        for program in list(self._processes):
            self._stop(program)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *flags: str) -> None:
        with open(self.directory / f"{Path(program).name}.out", "ab") as output:
            self._processes[program] = subprocess.Popen(
                [program, *flags], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _stop(self, program: str) -> None:
        process = self._processes.pop(program)
        process.kill()
        process.wait(PATIENCE)
