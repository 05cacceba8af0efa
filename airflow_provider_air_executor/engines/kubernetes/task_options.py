"""How a task's Pod looks: the field ``kubernetes`` of a task."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from airflow_provider_air_executor.jobs.models import Label, NonEmptyText


class KubernetesOptions(BaseModel):
    """How the Pod of a task looks, if it runs on Kubernetes. Words are those of Kubernetes, and so are the dicts.

    :param image: the container image; it must have ``/bin/sh``, and ``bash`` if the task is a line of bash.
    :param namespace: default: that of the manager's credentials.
    :param service_account: as which it runs. Without one, it gets no token for the API server.
    :param node_selector: labels that its node must have.
    :param tolerations: taints of nodes that it tolerates.
    :param labels: more labels of the Pod.
    :param annotations: more annotations of the Pod.
    :param image_pull_policy: ``Always``, ``IfNotPresent`` or ``Never``.
    :param image_pull_secrets: names of secrets by which its image is pulled.
    :param priority_class: name of its PriorityClass.
    :param volumes: volumes, each with a ``mountPath`` besides (and ``subPath``, ``readOnly``): ``{"name": "data",
        "persistentVolumeClaim": {"claimName": "data"}, "mountPath": "/data"}``.
    :param env_from: where more environment variables come from: ``{"secretRef": {"name": "database"}}``.
    :param attached_files: names of files attached to the job that its Pod gets by a Secret of its own, a token for
        instance: the task finds them in the directory ``AIR_EXECUTOR_ATTACHED``. Once it has begun, the manager removes
        them from the job and the Secret. A task with such files does not share its Pod.
    :param gpu_resource: what a graphics processor is called there; default ``nvidia.com/gpu``.
    :param pod_template: a Pod to begin with, all of whose other fields stay as they are; what the task runs in is its
        container called ``task``, or else the first one.
    :param tasks_per_submission: how many tasks of the job that are ready at the same time and need the same one Pod
        runs, one after the other; 1 to 50, default 1.
    :param bundle: the old name of ``tasks_per_submission``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    image: NonEmptyText | None = None
    namespace: Label | None = None
    service_account: NonEmptyText | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[dict[str, Any], ...] | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: tuple[str, ...] | None = None
    priority_class: NonEmptyText | None = None
    volumes: tuple[dict[str, Any], ...] | None = None
    env_from: tuple[dict[str, Any], ...] | None = None
    attached_files: tuple[NonEmptyText, ...] | None = None
    gpu_resource: NonEmptyText | None = None
    pod_template: dict[str, Any] | None = None
    tasks_per_submission: int | None = Field(default=None, ge=1, le=50, strict=True)
    bundle: int | None = Field(default=None, ge=1, le=50, strict=True)

    @field_validator("volumes")
    @classmethod
    def _check_volumes(cls, value: tuple[dict[str, Any], ...] | None) -> tuple[dict[str, Any], ...] | None:
        for volume in value or ():
            if not isinstance(volume.get("name"), str) or not str(volume.get("mountPath", "")).startswith("/"):
                raise ValueError("each volume needs a name and a mountPath that begins with /")
        return value

    def over(self, default: KubernetesOptions) -> KubernetesOptions:
        """These options, and those of another one that these do not name; what is by name is put together."""
        merged = {}
        for name in type(self).model_fields:
            own, other = getattr(self, name), getattr(default, name)
            if own is not None and other is not None and name in ("labels", "annotations", "node_selector"):
                own = {**other, **own}
            elif own is not None and other is not None and name == "volumes":
                names = {volume["name"] for volume in own}
                own = (*(volume for volume in other if volume["name"] not in names), *own)
            merged[name] = other if own is None else own
        return type(self).model_construct(**merged)


def check_options(given: Any) -> KubernetesOptions:
    """The options of a task.

    :raises ValidationError: naming those that are not valid.
    """
    return KubernetesOptions.model_validate(given)
