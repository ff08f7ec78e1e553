"""Everything that can be wrong with a rendered set of manifests and be found without a cluster."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import yaml
from ray._common.utils import import_attr
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from pipelines.serve.config import API_KEY_VARIABLE, ServedModel
from tests.unit.infra.kubernetes_schema import schema_problems
from tests.unit.infra.manta_commands import command_problems, commands_in_shell

REPOSITORY = Path(__file__).resolve().parents[3]
Document = dict[str, Any]
_DASHBOARD, _METRICS, _SERVE = 8265, 8080, 8000
"""Ports of Ray, KubeRay and Serve where nothing else is said; KubeRay's operator looks for them there."""


def problems(documents: list[Document]) -> list[str]:
    """One line a problem; the checks after the schemas take their shape for granted."""
    found = [f"{document['kind']}: {each}" for document in documents for each in schema_problems(document)]
    if found:
        return found
    for check in (_commands, _serve, _references, _pods, _policies, _clusters, _images):
        found += check(documents)
    return found


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """(name, pod template) of every pod that KubeRay will make, with the labels it adds that matter here."""
    for document in documents:
        name = document["metadata"]["name"]
        for cluster in _ray_clusters([document]):
            head = cluster["headGroupSpec"]["template"]
            yield f"{name} head", _labelled(head, {"ray.io/node-type": "head"})
            for group in cluster["workerGroupSpecs"]:
                yield (
                    f"{name} {group['groupName']}",
                    _labelled(group["template"], {"ray.io/node-type": "worker"}),
                )
        if document["kind"] == "RayJob":
            yield f"{name} submitter", document["spec"]["submitterPodTemplate"]


def _labelled(template: Document, labels: dict[str, str]) -> Document:
    metadata = template["metadata"]
    return {**template, "metadata": {**metadata, "labels": {**metadata["labels"], **labels}}}


def _ray_clusters(documents: list[Document]) -> Iterator[Document]:
    for document in documents:
        for key in ("rayClusterSpec", "rayClusterConfig"):
            if key in document.get("spec", {}):
                yield document["spec"][key]


def _commands(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "RayJob":
            commands = list(commands_in_shell(document["spec"]["entrypoint"]))
            if len(commands) != 1:
                yield f"the entrypoint is not one manta command: {document['spec']['entrypoint']}"
            for words in commands:
                yield from command_problems(words)


def _serve(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["kind"] != "RayService":
            continue
        config = yaml.safe_load(document["spec"]["serveConfigV2"])
        try:
            ServeDeploySchema.model_validate(config)
        except pydantic.ValidationError as error:
            yield f"serveConfigV2: {error}"
            continue
        (application,) = config["applications"]
        # Ray lets fields pass that it does not know, for the sake of configs newer than itself.
        yield from _unknown_fields(config, ServeDeploySchema)
        yield from _unknown_fields(config["http_options"], HTTPOptionsSchema)
        yield from _unknown_fields(application, ServeApplicationSchema)
        try:
            import_attr(application["import_path"])
        except (ImportError, AttributeError) as error:
            yield f"serveConfigV2: {application['import_path']}: {error}"
        try:
            options = ServedModel(**application["args"])
        except pydantic.ValidationError as error:
            yield f"serveConfigV2: args: {error}"
            continue
        yield from _replicas_fit(document, options)
        ports = _container_ports(documents, "serve")
        port = config["http_options"]["port"]
        if ports != {port} or port != _SERVE:
            yield f"Serve listens on {port}, the containers' port `serve` is {ports}, policies open {_SERVE}"


def _unknown_fields(config: Document, schema: type[pydantic.BaseModel]) -> Iterator[str]:
    for name in sorted(set(config) - set(schema.model_fields)):
        yield f"serveConfigV2: unknown field {name} of {schema.__name__}"


def _replicas_fit(service: Document, options: ServedModel) -> Iterator[str]:
    if not options.threads:
        yield "serveConfigV2: args.threads is missing"
        return
    room = 0
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        fit = int(limits["cpu"]) // options.threads
        gpus = int(limits.get("nvidia.com/gpu", 0))
        if bool(gpus) != bool(options.gpus):
            yield f"{group['groupName']} has {gpus} GPUs, a replica {options.gpus}"
        room += group["minReplicas"] * (min(fit, gpus) if gpus else fit)
    if room < options.replicas:
        yield f"{options.replicas} replicas of {options.threads} threads do not fit on the nodes ({room} do)"


def _container_ports(documents: list[Document], name: str) -> set[int]:
    return {
        port["containerPort"]
        for _, template in pods(documents)
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
        if port["name"] == name
    }


def _references(documents: list[Document]) -> Iterator[str]:
    """What pods refer to is made here, or by the command that the guide gives for it."""
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    guide = (REPOSITORY / "docs/kubernetes.md").read_text()
    secrets = set(re.findall(r"kubectl .*create secret generic ([\w-]+)", guide))
    for cluster in _ray_clusters(documents):
        if cluster["authOptions"]["secretName"] not in secrets:
            yield f"docs/kubernetes.md does not make the Secret {cluster['authOptions']['secretName']}"
    for name, template in pods(documents):
        account = template["spec"]["serviceAccountName"]
        if ("ServiceAccount", account) not in made:
            yield f"{name}: no service account {account}"
        for container in template["spec"]["containers"]:
            sources = list(container.get("envFrom", []))
            sources += [variable.get("valueFrom", {}) for variable in container.get("env", [])]
            for source in sources:
                if "configMapRef" in source and ("ConfigMap", source["configMapRef"]["name"]) not in made:
                    yield f"{name}: no ConfigMap {source['configMapRef']['name']}"
                secret = source.get("secretRef") or source.get("secretKeyRef")
                if secret and secret["name"] not in secrets:
                    yield f"docs/kubernetes.md does not make the Secret {secret['name']}"
    if any(kind == "Secret" for kind, _ in made):
        yield "a Secret is among the manifests: its value would be in the repository"


def _pods(documents: list[Document]) -> Iterator[str]:
    """The restricted Pod Security Standard, which the namespace enforces; and no container without limits."""
    for name, template in pods(documents):
        spec = template["spec"]
        security = spec.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") != 1000:
            yield f"{name} may run as root, or not as the image's user"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} carries a token for Kubernetes' API"
        for container in spec["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {
                "drop": ["ALL"]
            }:
                yield f"{name} {container['name']} may gain privileges"
            for kind in ("requests", "limits"):
                if not {"cpu", "memory"} <= set(container.get("resources", {}).get(kind, {})):
                    yield f"{name} {container['name']} has no {kind} of CPU and memory"
            for variable in container.get("env", []):
                if "value" in variable and re.search(r"KEY|TOKEN|SECRET|PASSWORD", variable["name"]):
                    yield f"{name}: {variable['name']} has its value in the manifest"
        variables = {each["name"] for container in spec["containers"] for each in container.get("env", [])}
        if template["metadata"]["labels"].get("app.kubernetes.io/component") == "serve" and (
            API_KEY_VARIABLE not in variables
        ):
            yield f"{name} has no {API_KEY_VARIABLE}"


def _policies(documents: list[Document]) -> Iterator[str]:
    """Every policy selects a pod that there is; pods are cut off by default and reach their own cluster."""
    labels = [(name, template["metadata"]["labels"]) for name, template in pods(documents)]
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        selectors = [spec["podSelector"]]
        for rule in spec.get("ingress", []) + spec.get("egress", []):
            peers = rule.get("from", []) + rule.get("to", [])
            selectors += [peer["podSelector"] for peer in peers if set(peer) == {"podSelector"}]
        for selector in selectors:
            if labels and not any(_selects(selector, pod) for _, pod in labels):
                yield f"NetworkPolicy {name} selects no pod: {selector}"
    default = [p for p in policies if p["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]
    if not default:
        yield "no NetworkPolicy closes the namespace by default"
    open_ports = {
        port["port"]
        for policy in policies
        for rule in policy["spec"].get("ingress", [])
        for port in rule.get("ports", [])
    }
    known = {_DASHBOARD, _METRICS, _SERVE}
    if not open_ports <= known:
        yield f"a NetworkPolicy opens {sorted(open_ports - known)}, where nothing listens"
    for name, pod in labels:
        if pod.get("ray.io/node-type") and not any(
            _selects(policy["spec"]["podSelector"], pod)
            and any(
                "ports" not in rule and any(_selects(peer.get("podSelector"), pod) for peer in rule["from"])
                for rule in policy["spec"].get("ingress", [])
            )
            for policy in policies
        ):
            yield f"{name} is not reached by the other nodes of its cluster"


def _selects(selector: Document | None, labels: dict[str, str]) -> bool:
    if selector is None:
        return False
    assert set(selector) <= {"matchLabels"}, "the tests know no other selectors"
    return selector.get("matchLabels", {}).items() <= labels.items()


def _clusters(documents: list[Document]) -> Iterator[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (pinned,) = [each for each in project["dependencies"] if each.startswith("ray[")]
    minor = pinned.partition("==")[2].removesuffix("*")
    for cluster in _ray_clusters(documents):
        if cluster["authOptions"]["mode"] != "token":
            yield "Ray runs open: authOptions.mode is not token"
        if not cluster["rayVersion"].startswith(minor):
            yield f"rayVersion {cluster['rayVersion']} is not what the image has: {pinned}"
        for group in cluster["workerGroupSpecs"]:
            if not group["minReplicas"] == group["replicas"] == group["maxReplicas"]:
                yield f"{group['groupName']}: a run does not adapt to nodes that come later"


def _images(documents: list[Document]) -> Iterator[str]:
    targets = set(
        re.findall(r"^FROM \S+ AS (\S+)", (REPOSITORY / "infra/docker/Dockerfile").read_text(), re.MULTILINE)
    )
    for name, template in pods(documents):
        for container in template["spec"]["containers"]:
            image, _, tag = container["image"].partition(":")
            if image != "manta" or tag not in targets:
                yield f"{name}: {container['image']} is none of the images that infra/docker builds"
