"""The Kubernetes manifests of `compose/kubernetes`, as they lie there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "compose" / "kubernetes"


@dataclass(frozen=True)
class Manifest:
    """One object, and the folder of the kustomization that it belongs to."""

    folder: str
    body: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.folder}/{self.body['kind']}/{self.body['metadata']['name']}"

    @property
    def pod(self) -> dict[str, Any]:
        """The pod of a Deployment."""
        spec: dict[str, Any] = self.body["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """The only container of a Deployment."""
        (container,) = self.pod["containers"]
        assert isinstance(container, dict)
        return container


def manifests(kind: str = "") -> list[Manifest]:
    """Return every object, or those of one kind."""
    found = []
    for path in sorted(MANIFESTS.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            bodies = list(yaml.safe_load_all(path.read_text()))
            found += [Manifest(path.parent.name, body) for body in bodies]
    return [each for each in found if kind in ("", each.body["kind"])]
