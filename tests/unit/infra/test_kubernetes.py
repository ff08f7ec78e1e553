"""The Kubernetes manifests, rendered and checked against KubeRay's, Kubernetes' and Ray's own schemas."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.infra.kubernetes_checks import REPOSITORY, pods, problems

KUBERNETES = REPOSITORY / "infra/kubernetes"
TARGETS = ["pretrain", "serve", "overlays/pretrain-gpu", "overlays/serve-gpu"]
COMPONENTS = ["eks", "gpu", "s3-endpoint"]
_BESIDE_PYTHON = Path(sys.executable).with_name("kubectl")
KUBECTL = str(_BESIDE_PYTHON) if _BESIDE_PYTHON.exists() else shutil.which("kubectl")

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


def render(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    answer = subprocess.run(
        [str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    return list(yaml.load_all(answer.stdout, yaml.CSafeLoader))


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifests_have_no_problem(target):
    documents = render(KUBERNETES / target)
    assert problems(documents) == []
    assert {"RayJob", "RayService"} & {document["kind"] for document in documents}
    assert {document["metadata"].get("namespace", "manta") for document in documents} == {"manta"}


@pytest.mark.parametrize(
    ("target", "component"),
    [(target, component) for target in ("pretrain", "serve") for component in ("eks", "s3-endpoint")]
    + [("pretrain", "gpu")],  # A service also needs `gpus` in its args: overlays/serve-gpu.
)
def test_the_components_fit_the_workloads(target, component, tmp_path):
    kustomization = {
        "resources": [os.path.relpath(KUBERNETES / target, tmp_path.resolve())],
        "components": [os.path.relpath(KUBERNETES / "components" / component, tmp_path.resolve())],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    documents = render(tmp_path)
    assert problems(documents) == []
    assert documents != render(KUBERNETES / target)


def test_every_folder_is_tested_and_explained():
    folders = {str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml")}
    assert folders == {*TARGETS, *(f"components/{name}" for name in COMPONENTS), "base"}
    readme = (KUBERNETES / "README.md").read_text()
    for path in KUBERNETES.rglob("*.yaml"):
        name = str(path.relative_to(KUBERNETES))
        assert f"`{name}`" in readme, f"infra/kubernetes/README.md does not say what {name} is"


def test_the_overlays_put_workers_on_gpus_and_the_head_on_none():
    for target in ("overlays/pretrain-gpu", "overlays/serve-gpu"):
        gpus = {
            name.split()[1]: template["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            for name, template in pods(render(KUBERNETES / target))
        }
        assert gpus.pop("head") is None
        assert gpus.pop("submitter", None) is None
        assert all(int(count) > 0 for count in gpus.values())


JOB, SERVICE = "pretrain/ray-job.yaml", "serve/ray-service.yaml"
JOB_ON_GPUS, SERVICE_ON_GPUS = (f"overlays/{name}-gpu/kustomization.yaml" for name in ("pretrain", "serve"))
TYPOS = [
    # KubeRay's schemas
    (JOB, "backoffLimit:", "backofLimit:", "backofLimit"),
    (JOB, "mode: token", "mode: tokens", "tokens"),
    (JOB, "replicas: 2\n", "replicas: two\n", "two"),
    (JOB, "memory: 16Gi", "memory: 16 Gi", "16 Gi"),
    (JOB, "envFrom:", "envfrom:", "envfrom"),
    (SERVICE, "excludeHeadPodFromServeSvc", "excludeHeadFromServeSvc", "excludeHeadFromServeSvc"),
    (SERVICE, "containerPort: 8000", 'containerPort: "8000"', "8000"),
    # Kubernetes' schemas
    ("serve/network-policy.yaml", "policyTypes:", "policyType:", "policyType"),
    ("base/namespace.yaml", "labels:", "lables:", "lables"),
    ("base/service-account.yaml", "kind: ServiceAccount", "kind: ServiceAcount", "ServiceAcount"),
    (JOB, "  name: manta-pretrain", "  nmae: manta-pretrain", "name"),
    # the command and its flags
    (JOB, "--workers 2", "--worker 2", "--worker"),
    (JOB, "manta pretrain", "manta pre-train", "pre-train"),
    (JOB, "llama-15m", "llama-16m", "llama-16m"),
    (JOB, "--global-batch 64", "--global-batch 1 ", "global_batch=1"),
    (JOB_ON_GPUS, "--seq-len 2048", "--seq-len 20480", "20480"),
    # the served application
    (SERVICE, "pipelines.serve.app:build", "pipelines.serve.app:built", "built"),
    (SERVICE, "pipelines.serve.app:build", "pipelines.serve.apps:build", "apps"),
    (SERVICE, "threads: 3", "thread: 3", "thread"),
    (SERVICE, "threads: 3", "threads: 5", "do not fit"),
    (SERVICE, "proxy_location:", "proxy_locations:", "proxy_locations"),
    (SERVICE, "proxy_location: EveryNode", "proxy_location: EveryNod", "EveryNod"),
    (SERVICE, "port: 8000\n", "port: 8001\n", "8001"),
    (SERVICE_ON_GPUS, "gpus: 1", "gpu: 1", "gpu"),
    (SERVICE_ON_GPUS, "gpus: 1", "gpus: 0", "GPUs"),
    # what the parts say to each other
    (SERVICE, "name: manta-settings", "name: manta-setting", "manta-setting"),
    (SERVICE, "name: manta-s3", "name: manta-s4", "manta-s4"),
    (SERVICE, "secretName: manta-ray-token", "secretName: ray-token", "ray-token"),
    (SERVICE, "name: MANTA_API_KEY", "name: MANTA_API_KYE", "MANTA_API_KEY"),
    (SERVICE, 'rayVersion: "2.60.0"', 'rayVersion: "2.6.0"', "2.6.0"),
    (SERVICE, "image: manta:cpu", "image: manta:cpus", "cpus"),
    (JOB, "serviceAccountName: manta", "serviceAccountName: mantra", "mantra"),
    (JOB, "component: pretrain\n", "component: pretain\n", "pretrain-nodes"),
    ("pretrain/network-policy.yaml", "port: 8265", "port: 8256", "8256"),
    ("base/network-policy.yaml", "ray.io/node-type: head", "ray.io/node-type: Head", "operator"),
    # security
    (SERVICE, "runAsNonRoot: true", "runAsNonRoot: false", "root"),
    (SERVICE, "drop: [ALL]", "drop: [NET_RAW]", "privileges"),
    (JOB, "mode: token", "mode: disabled", "runs open"),
    ("base/network-policy.yaml", "[Ingress, Egress]", "[Egress]", "closes the namespace"),
    # kustomize itself
    ("components/gpu/kustomization.yaml", "/tolerations", "/toleratons", "toleratons"),
    (SERVICE_ON_GPUS, "../../serve", "../../serv", "serv"),
]


@pytest.mark.parametrize(("file", "right", "wrong", "named"), TYPOS)
def test_a_planted_typo_is_caught(tmp_path, file, right, wrong, named):
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    path = tmp_path / "kubernetes" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    folder = str(Path(file).parent)
    target = {"base": "serve", "components/gpu": "overlays/serve-gpu"}.get(folder, folder)
    try:
        found = problems(render(tmp_path / "kubernetes" / target))
    except AssertionError as refused:  # by kustomize
        found = [str(refused)]
    assert any(named in problem for problem in found), found
