"""The Kubernetes manifests as a test reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"


@dataclass(frozen=True)
class Container:
    """A container of a pod, with the pod that it is in."""

    resource: dict[str, Any]
    pod: dict[str, Any]
    spec: dict[str, Any]

    def environment(self) -> dict[str, Any]:
        """Values by name; what comes from elsewhere as the reference to it."""
        return {each["name"]: each.get("value", each.get("valueFrom")) for each in self.spec["env"]}


def documents(*paths: Path) -> list[dict[str, Any]]:
    """What the files hold; by default all of them."""
    paths = paths or tuple(sorted(FOLDER.rglob("*.yaml")))
    return [made for path in paths for made in yaml.safe_load_all(path.read_text())]


def of_cluster(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out what only Kustomize reads."""
    return [each for each in resources if "kustomize" not in each["apiVersion"]]


def containers(resources: list[dict[str, Any]]) -> Iterator[Container]:
    """All containers, those that begin before the others too."""
    for resource in resources:
        if resource["kind"] in ("Deployment", "Job"):
            pod = resource["spec"]["template"]["spec"]
            for spec in [*pod.get("initContainers", []), *pod["containers"]]:
                yield Container(resource, pod, spec)
