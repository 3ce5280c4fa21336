"""The Kubernetes manifests follow their schemas and fit the code, the images and compose."""

from __future__ import annotations

import re
import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from batchmill.producer.protocol import keys
from batchmill.worker.settings import WorkerSettings

from ..support.manifests import MANIFESTS, Manifest, manifests
from .public_interface import ROOT, named_variables, problem_of_call, variable_names

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())[
    "services"
]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "images.yml").read_text())
#: Oldest and newest version of Kubernetes whose schemas the manifests are held to.
VERSIONS = ("1.27", "1.37")
#: KEDA's objects have a test of their own.
OF_KUBERNETES = [each for each in manifests() if not each.body["apiVersion"].startswith("keda.sh/")]
DEPLOYMENTS = manifests("Deployment")
KUSTOMIZATIONS = sorted(MANIFESTS.rglob("kustomization.yaml"))
#: The service of compose that runs the same program.
OF_COMPOSE = {
    **{f"base/{name}": name for name in ("deliverer", "gateway", "metrics", "flower")},
    **{f"worker-{name}/worker": f"worker-{name}" for name in ("cpu", "gpu")},
}
every_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=str)


def service_of(deployment: Manifest) -> dict[str, Any]:
    program = deployment.body["metadata"]["name"].removeprefix("batchmill-")
    service: dict[str, Any] = SERVICES[OF_COMPOSE[f"{deployment.folder}/{program}"]]
    return service


def environment_of(deployment: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in deployment.container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", OF_KUBERNETES, ids=str)
def test_every_object_follows_its_schema(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest.body, version, strict=True)


def test_an_unknown_field_is_found() -> None:
    wrong = {**manifests("Namespace")[0].body, "spec": {"finalizer": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_program_of_compose_is_there() -> None:
    own = {name for name, service in SERVICES.items() if "build" in service}
    assert set(OF_COMPOSE.values()) == own - {"cli"}
    assert len(DEPLOYMENTS) == len(OF_COMPOSE)


@every_deployment
def test_images_and_commands_are_those_of_compose(deployment: Manifest) -> None:
    container, service = deployment.container, service_of(deployment)
    image = deployment.body["metadata"]["name"]
    assert container["image"] == image  # a kustomization names registry and tag
    built = {each["name"] for each in WORKFLOW["jobs"]["image"]["strategy"]["matrix"]["include"]}
    assert image in built
    if "command" in container:
        words = re.split(r"exec batchmill ", container["command"][-1])[1].split()
        assert words == service["entrypoint"][-1].split("exec batchmill ")[1].split()
    else:
        words = container["args"]
        assert words[: len(service["command"][:1])] == service["command"][:1]
    assert problem_of_call(words) is None


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("*.*")), ids=lambda path: path.name)
def test_variables_that_a_file_names_exist(path: Path) -> None:
    assert named_variables(path.read_text()) - variable_names() == set()


@every_deployment
def test_pods_meet_the_restricted_standard(deployment: Manifest) -> None:
    pod, container = deployment.pod, deployment.container
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # the user of the images
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    kinds = {kind for volume in pod["volumes"] for kind in set(volume) - {"name"}}
    assert kinds <= {"secret", "emptyDir", "persistentVolumeClaim"}
    assert "memory" in container["resources"]["limits"]
    assert "memory" in container["resources"]["requests"]


@every_deployment
def test_secrets_are_files_of_a_secret_of_their_own(deployment: Manifest) -> None:
    mounts = {each["mountPath"]: each["name"] for each in deployment.container["volumeMounts"]}
    volumes = {each["name"]: each for each in deployment.pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    name = deployment.body["metadata"]["name"]
    assert volumes[mounts["/run/secrets"]]["secret"]["secretName"] == name
    environment = environment_of(deployment)
    files = {key: value for key, value in environment.items() if key.endswith("_FILE")}
    assert "BATCHMILL_BROKER_URL_FILE" in files
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    made = re.findall(rf"create secret generic {name}\b(.*?)\n(?!  )", text, re.DOTALL)
    keys_made = {f"/run/secrets/{key}" for key in re.findall(r"--from-file=(\w+)=", made[0])}
    read = set(files.values()) | set(re.findall(r"/run/secrets/\w+", str(deployment.container)))
    assert keys_made == read
    # What is in the environment in compose by a file is here by a file, too.
    of_compose = {key for key in service_of(deployment)["environment"] if key.endswith("_FILE")}
    assert set(files) == of_compose


@pytest.mark.parametrize("name", ["worker-cpu", "worker-gpu"])
def test_a_worker_has_time_to_drain(name: str) -> None:
    (deployment,) = [each for each in DEPLOYMENTS if each.folder == name]
    drain_s = float(environment_of(deployment)["BATCHMILL_DRAIN_TIMEOUT_S"])
    grace_s = deployment.pod["terminationGracePeriodSeconds"]
    assert grace_s >= drain_s + 20
    assert WorkerSettings.model_fields["drain_timeout_s"].default + 20 <= grace_s
    assert "replicas" not in deployment.body["spec"]  # the autoscaler's


@every_deployment
def test_others_have_the_time_that_compose_gives_them(deployment: Manifest) -> None:
    before = deployment.container.get("lifecycle", {}).get("preStop", {}).get("exec")
    before_s = int(before["command"][1]) if before else 0
    grace_s = deployment.pod["terminationGracePeriodSeconds"]
    wanted_s = int(service_of(deployment).get("stop_grace_period", "10s").removesuffix("s"))
    assert grace_s >= wanted_s + before_s


def test_selectors_find_the_pods() -> None:
    for folder in ("worker-cpu", "worker-gpu"):
        found = [each for each in manifests() if each.folder in ("base", folder)]
        pods = [
            each.body["spec"]["template"] for each in found if each.body["kind"] == "Deployment"
        ]
        labels = [pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods]
        ports = {
            pod["metadata"]["labels"]["app.kubernetes.io/name"]: {
                port["name"] for port in pod["spec"]["containers"][0]["ports"]
            }
            for pod in pods
        }
        for each in found:
            selector = each.body.get("spec", {}).get("selector")
            if selector:
                wanted = selector.get("matchLabels", selector)["app.kubernetes.io/name"]
                assert labels.count(wanted) == 1
                for port in each.body["spec"].get("ports", ()):
                    assert port["targetPort"] in ports[wanted]


def test_the_network_is_closed_but_for_what_is_listed() -> None:
    policies = {
        each.body["metadata"]["name"]: each.body["spec"] for each in manifests("NetworkPolicy")
    }
    assert policies["batchmill-nothing"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    for name in ("batchmill-deliverer", "batchmill-worker"):
        (rule,) = policies[name]["egress"]
        four, six = (ip_network(to["ipBlock"]["cidr"]) for to in rule["to"])
        assert (four.prefixlen, six.prefixlen) == (0, 0)
        left_out = [ip_network(cidr) for cidr in rule["to"][0]["ipBlock"]["except"]]
        for address in ("10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.1.1"):
            assert any(ip_address(address) in network for network in left_out), address


@pytest.mark.parametrize("manifest", manifests("ScaledObject"), ids=str)
def test_scaled_objects_follow_workers_that_exist(manifest: Manifest) -> None:
    """There is no schema of KEDA among the packages; these are its required fields."""
    spec = manifest.body["spec"]
    assert manifest.body["apiVersion"] == "keda.sh/v1alpha1"
    names = {each.body["metadata"]["name"] for each in DEPLOYMENTS}
    assert spec["scaleTargetRef"]["name"] in names
    assert (spec["minReplicaCount"], spec["maxReplicaCount"] > 0) == (0, True)
    fields = {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "cooldownPeriod",
        "triggers",
    }
    assert set(spec) == fields
    for trigger in spec["triggers"]:
        assert set(trigger) <= {"type", "metadata", "authenticationRef"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    lists = [trigger["metadata"].get("listName") for trigger in spec["triggers"]]
    if manifest.folder == "autoscale-redis":
        classes = ("high", "normal", "low")
        assert lists == [keys.queued(keys.queue_name("demo", name)) for name in classes]
    else:
        assert "batchmill_workers_wanted{" in spec["triggers"][0]["metadata"]["query"]


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_kustomizations_name_files_that_exist(path: Path) -> None:
    body = yaml.safe_load(path.read_text())
    assert (body["kind"], body["namespace"]) == ("Kustomization", "batchmill")
    files = {each.name for each in path.parent.glob("*.yaml")} - {path.name}
    named = set(body["resources"])
    assert files <= named
    assert [name for name in named - files if not (path.parent / name).is_dir()] == []


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Render a kustomization as `kubectl apply -k` does."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [body for body in yaml.safe_load_all(done.stdout) if body is not None]


def check_references(objects: list[dict[str, Any]]) -> None:
    """Check that every object follows its schema, and that names which kustomize makes fit."""
    for body in objects:
        kubernetes_validate.validate(body, VERSIONS[-1], strict=True)
    configured = {each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"}
    claims = {
        each["metadata"]["name"] for each in objects if each["kind"] == "PersistentVolumeClaim"
    }
    for body in objects:
        if body["kind"] == "Deployment":
            pod = body["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            sources = container.get("envFrom", ())
            assert {each["configMapRef"]["name"] for each in sources} <= configured
            claimed = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
            assert {claim["claimName"] for claim in claimed if claim} <= claims


@pytest.mark.parametrize("folder", ["worker-cpu", "worker-gpu"])
def test_kubectl_renders_what_an_operator_applies(folder: str) -> None:
    objects = rendered(MANIFESTS / folder)
    check_references(objects)
    kinds = [body["kind"] for body in objects]
    assert kinds.count("Deployment") == 5
    parts = {
        body["metadata"]["labels"]["app.kubernetes.io/part-of"]
        for body in objects
        if body["kind"] != "ConfigMap"
    }
    assert parts == {"batchmill"}


def test_kubectl_renders_the_example_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (example,) = re.findall(
        r"^```yaml\n(apiVersion: kustomize.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    shutil.copytree(MANIFESTS, tmp_path / "compose" / "kubernetes")
    (tmp_path / "kustomization.yaml").write_text(example)
    objects = [each for each in rendered(tmp_path) if not each["apiVersion"].startswith("keda.sh/")]
    check_references(objects)
    (worker,) = [
        each
        for each in objects
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "batchmill-worker")
    ]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/batchmill-worker:v1.0.0"
    (settings,) = [each["data"] for each in objects if each["kind"] == "ConfigMap"]
    assert settings["BATCHMILL_MODEL"] == "Qwen/Qwen3-8B"
    assert named_variables(example) - variable_names() == set()


def test_the_commands_of_the_page_make_the_secrets(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"^```sh\n(REDIS_ADDRESS.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "compose").mkdir()
    for name in ("make_secrets.sh", "users.acl"):
        shutil.copy(ROOT / "compose" / name, tmp_path / "compose")
    # Without a cluster: print the objects that would be created.
    created = f"echo ---; {kubectl} create --dry-run=client -o yaml secret"
    of_cluster = ("kubectl create namespace", "kubectl config")
    lines = [line for line in block.splitlines() if not line.startswith(of_cluster)]
    script = "\n".join(lines).replace("kubectl create secret", created)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout.partition("---")[2]) if each]
    names = {each.body["metadata"]["name"] for each in DEPLOYMENTS}
    assert {each["metadata"]["name"] for each in made} == names
    urls = (tmp_path / "compose" / "secrets").glob("*_broker_url")
    assert all("@redis.example:6379/0" in url.read_text() for url in urls)
