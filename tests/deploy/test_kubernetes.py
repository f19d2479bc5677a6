"""The manifests fit Kubernetes' schemas, each other, and the programs that they start."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from analytics_service.config import AnalyticsSettings
from control_plane.config import ServerSettings
from grpc_runtime.service_settings import ServiceSettings
from midcourse.analytics.v1 import analytics_pb2
from midcourse.control.v1 import control_pb2
from tests.support.dockerfile import stages
from tests.support.known_variables import known_variables
from tests.support.manifests import FOLDER, Container, containers, documents, of_cluster
from trainer_agent.agent.options import parse_options
from trainer_agent.link.address import locate

OLDEST, NEWEST = "1.32", "1.35"
"""Versions of Kubernetes: `sleep`, `matchLabelKeys` and sidecars are all on by default."""
RESOURCES = of_cluster(documents())
FOREIGN = {"cert-manager.io/v1", "monitoring.coreos.com/v1"}
"""Kinds that Kubernetes does not have by itself."""
CONTAINERS = list(containers(RESOURCES))
SERVERS = [each for each in CONTAINERS if each.resource["kind"] == "Deployment"]
SERVICES: dict[str, tuple[type[ServiceSettings], Any, str]] = {
    "midcourse-control-plane": (ServerSettings, control_pb2, "ControlPlaneService"),
    "midcourse-analytics": (AnalyticsSettings, analytics_pb2, "AnalyticsService"),
}
SECRETS_OF_OTHERS = {
    "midcourse-agent-token", "midcourse-database", "midcourse-providers", "midcourse-tls",
}  # fmt: skip


def named(containers: list[Container]) -> pytest.MarkDecorator:
    """Runs a test for each of these."""
    ids = [f"{each.resource['metadata']['name']}-{each.spec['name']}" for each in containers]
    return pytest.mark.parametrize("container", containers, ids=ids)


def check(resources: list[dict[str, Any]], version: str) -> None:
    for resource in resources:
        if resource["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_manifests_fit_the_schemas(version: str) -> None:
    assert {each["kind"] for each in RESOURCES} >= {"Deployment", "Job", "NetworkPolicy"}
    check(RESOURCES, version)


def test_an_unknown_field_does_not_fit() -> None:
    (service, *_) = [each for each in RESOURCES if each["kind"] == "Service"]
    with pytest.raises(kubernetes_validate.ValidationError):
        check([{**service, "spec": {**service["spec"], "sellector": {}}}], NEWEST)


def test_kustomizations_name_files_that_are_there() -> None:
    for path in FOLDER.rglob("kustomization.yaml"):
        (made,) = documents(path)
        for each in [*made.get("resources", []), *made.get("components", [])]:
            assert (path.parent / each).exists(), (path, each)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders, is not here")
@pytest.mark.parametrize("folder", ["base", "overlays/production"])
def test_what_is_rendered_fits_the_schemas(folder: str) -> None:
    ran = subprocess.run(
        ["kubectl", "kustomize", FOLDER / folder], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    rendered = list(yaml.safe_load_all(ran.stdout))
    check(rendered, NEWEST)
    assert len({(each["kind"], each["metadata"]["name"]) for each in rendered}) == len(rendered)
    for each in rendered:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "midcourse"
    autoscaled = any(each["kind"] == "HorizontalPodAutoscaler" for each in rendered)
    (deployment,) = [
        each for each in rendered
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "midcourse-control-plane")
    ]  # fmt: skip
    assert ("replicas" in deployment["spec"]) != autoscaled


@named(CONTAINERS)
def test_a_container_has_no_more_rights_than_it_needs(container: Container) -> None:
    context, pod = container.spec["securityContext"], container.pod["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] == 10001
    assert pod["seccompProfile"]["type"] == "RuntimeDefault"
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    if container.spec["name"] != "training":  # which is somebody else's image
        assert context["readOnlyRootFilesystem"]
        assert container.spec["resources"]["requests"]
        assert "memory" in container.spec["resources"]["limits"]


@named(CONTAINERS)
def test_what_is_mounted_is_there(container: Container) -> None:
    volumes = {each["name"]: each for each in container.pod["volumes"]}
    mounts = {each["name"]: each["mountPath"] for each in container.spec["volumeMounts"]}
    assert mounts.keys() <= volumes.keys()
    for value in container.environment().values():
        if isinstance(value, str) and value.startswith("/"):
            assert any(value.startswith(f"{path}/") for path in mounts.values()), value
    for volume in volumes.values():
        if secret := volume.get("secret"):
            assert secret["secretName"] in SECRETS_OF_OTHERS


@named(CONTAINERS)
def test_the_environment_names_settings(container: Container) -> None:
    ours = {name for name in container.environment() if name.startswith("MIDCOURSE_")}
    assert ours
    assert ours <= known_variables()


@named(SERVERS)
def test_a_servers_settings_are_taken(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program reads the very values, on top of those of its image."""
    name = container.resource["metadata"]["name"]
    model, _, _ = SERVICES[name]
    image = stages()[name.removeprefix("midcourse-")].environment()
    for variable, value in {**image, **container.environment()}.items():
        if variable.startswith("MIDCOURSE_"):
            text = value if isinstance(value, str) else "postgresql://u:p@db/midcourse"
            monkeypatch.setenv(variable, text)
    settings: Any = model.load()
    ports = {each["name"]: each["containerPort"] for each in container.spec["ports"]}
    assert settings.listen == f"0.0.0.0:{ports['grpc']}"
    assert settings.health_listen == f"0.0.0.0:{ports['health']}"
    assert not settings.insecure
    hook = container.spec["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert container.pod["terminationGracePeriodSeconds"] >= hook + settings.grace + 5


@named(SERVERS)
def test_probes_ask_for_services_that_are_there(container: Container) -> None:
    _, module, service = SERVICES[container.resource["metadata"]["name"]]
    ports = {each["name"]: each["containerPort"] for each in container.spec["ports"]}
    probes = [
        container.spec[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")
    ]
    assert {probe["port"] for probe in probes} == {ports["health"]}
    full_name = module.DESCRIPTOR.services_by_name[service].full_name
    # A liveness probe that asked for more would restart what only waits for its database.
    assert [probe.get("service", "") for probe in probes] == ["", full_name, ""]


@named(SERVERS)
def test_a_server_is_found_by_what_belongs_to_it(container: Container) -> None:
    name = container.resource["metadata"]["name"]
    labels = container.resource["spec"]["template"]["metadata"]["labels"]
    ports = {each["name"] for each in container.spec["ports"]}
    by_kind = {
        each["kind"]: each["spec"]
        for each in RESOURCES
        if each["metadata"]["name"] == name and "spec" in each
    }
    assert by_kind["Service"]["selector"].items() <= labels.items()
    assert {each["targetPort"] for each in by_kind["Service"]["ports"]} <= ports
    assert by_kind["PodDisruptionBudget"]["selector"]["matchLabels"].items() <= labels.items()
    assert by_kind["NetworkPolicy"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert by_kind["Deployment"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert container.pod["serviceAccountName"] == name
    assert container.pod["automountServiceAccountToken"] is False
    certificate = next(each for each in RESOURCES if each["kind"] == "Certificate")
    assert f"{name}.midcourse.svc" in certificate["spec"]["dnsNames"]


CLIENTS = {"MIDCOURSE_CONTROL_PLANE", "MIDCOURSE_ANALYTICS_CONTROL_PLANE"}
"""What names the control plane to who connects to it."""


def test_who_is_to_connect_to_the_control_plane_is_let_in() -> None:
    services = {
        f"{each['metadata']['name']}{domain}:{port['port']}"
        for each in RESOURCES if each["kind"] == "Service"
        for port in each["spec"]["ports"]
        for domain in ("", ".midcourse.svc")
    }  # fmt: skip
    policy = next(
        each["spec"] for each in RESOURCES
        if (each["kind"], each["metadata"]["name"]) == ("NetworkPolicy", "midcourse-control-plane")
    )  # fmt: skip
    (let_in,) = policy["ingress"][0]["from"]
    named = set()
    for container in CONTAINERS:
        environment = container.environment()
        for address in (environment[name] for name in CLIENTS & environment.keys()):
            assert address in services
            labels = container.resource["spec"]["template"]["metadata"]["labels"]
            assert let_in["podSelector"]["matchLabels"].items() <= labels.items()
            named.add(container.resource["kind"])
    assert named == {"Job", "Deployment"}


def test_a_sidecar_and_its_training_meet() -> None:
    agent, training = (
        each for each in CONTAINERS
        if each.resource["kind"] == "Job" and len(each.pod.get("initContainers", [])) == 1
    )  # fmt: skip
    assert agent.spec["restartPolicy"] == "Always"
    environments = [each.environment() for each in (agent, training)]
    options = parse_options(agent.spec["args"], environments[0])
    meeting = [locate(env["JOB_ID"], environ=env) for env in environments]
    assert meeting[0] == meeting[1]
    for container in (agent, training):
        mounts = {each["name"]: each["mountPath"] for each in container.spec["volumeMounts"]}
        # Inside the volume, whose own directory others may enter: it is made with mode 0700.
        assert str(meeting[0].directory.parent) == mounts["socket"]
    assert environments[1]["MIDCOURSE_START_AGENT"] == "0"
    assert "MIDCOURSE_TOKEN_FILE" not in environments[1]
    assert agent.pod["terminationGracePeriodSeconds"] > options.linger
