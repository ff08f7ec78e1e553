"""What can be wrong with the cluster's file and with its access stack and be found without AWS."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import botocore.session
import click
import jsonschema
import yaml
from botocore.validate import ParamValidator
from cfnlint.api import ManualArgs, lint
from cfnlint.decode import decode_str
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_command

from tests.unit.infra.kubernetes_checks import REPOSITORY
from tests.unit.infra.manta_commands import command_problems, commands_in_shell

# What Ray's provider reads in a node_config and takes out before it calls EC2.
_RAYS_OWN = {"SubnetIds"}
_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def cluster_problems(text: str, access: str) -> list[str]:
    """One line a problem of cluster/aws.yaml. `access` is the text of the stack that it relies on."""
    config = yaml.safe_load(text)
    try:
        prepared = prepare_config(config)
        validate_config(prepared)
    except (jsonschema.ValidationError, ValueError, KeyError, TypeError, AssertionError) as error:
        return [f"Ray refuses it: {str(error).splitlines()[0]}"]
    return [*_nodes(config, access), *_commands(config), *_token(config), *_mounts(config)]


def _nodes(config: dict[str, Any], access: str) -> Iterator[str]:
    """EC2's own description of RunInstances; Ray's schema lets anything pass here."""
    operation = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    template, _ = decode_str(access)
    profiles = {
        str(properties["InstanceProfileName"]["Fn::Sub"]).replace("${ClusterName}", config["cluster_name"])
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::IAM::InstanceProfile"
        for properties in [resource["Properties"]]
    }
    for name, node_type in config["available_node_types"].items():
        node = {key: value for key, value in node_type["node_config"].items() if key not in _RAYS_OWN}
        report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, operation.input_shape)
        yield from (f"{name}: {line}" for line in report.generate_report().splitlines())
        if node.get("IamInstanceProfile", {}).get("Name") not in profiles:
            yield f"{name}: the stack makes no such instance profile: {node.get('IamInstanceProfile')}"
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: whoever makes the node fetch a URL gets its credentials (IMDSv1)"
        if name != config["head_node_type"] and node_type["min_workers"] != node_type["max_workers"]:
            yield f"{name}: a run does not adapt to nodes that come later"


def _commands(config: dict[str, Any]) -> Iterator[str]:
    """Each is a shell command; each `ray` and `manta` in it has only options that exist."""
    for field in _COMMANDS:
        for command in config[field]:
            answer = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            if answer.returncode:
                yield f"{field}: {answer.stderr.strip()}"
                continue
            for part in command.split(";"):
                words = shlex.split(part)
                if words[:1] == ["ray"]:
                    yield from ray_problems(words[1:])
            for words in commands_in_shell(command):
                yield from command_problems(words)


def ray_problems(words: list[str]) -> Iterator[str]:
    """One line if the `ray` command refuses these arguments. Nothing runs."""
    try:
        with ray_command.make_context("ray", list(words)) as context:
            name, command, rest = ray_command.resolve_command(
                context, [*context.protected_args, *context.args]
            )
            command.make_context(name, rest, parent=context)
    except click.ClickException as error:
        yield f"ray {shlex.join(words)}: {error.format_message()}"


def _token(config: dict[str, Any]) -> Iterator[str]:
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "no token is copied to the nodes"
    if not any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"]):
        yield "Ray runs open: nothing sets RAY_AUTH_MODE=token"
    if not any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        yield "the dashboard and its job port listen on more than the head itself"


def _mounts(config: dict[str, Any]) -> Iterator[str]:
    for local in config["file_mounts"].values():
        if not local.startswith("~") and not (REPOSITORY / local).exists():
            yield f"file_mounts: there is no {local} in the repository"
    needed = {"llm", "cluster", "pipelines", "pyproject.toml", "README.md", "LICENSE"}
    for missing in sorted(needed - set(config["file_mounts"].values())):
        yield f"file_mounts: pip needs {missing} to install Manta"


def access_problems(text: str) -> list[str]:
    """One line a problem of the stack: CloudFormation's, then ours about what is allowed to whom."""
    matches = lint(text, config=ManualArgs(regions=["us-west-2"]))
    found = [f"{match.rule.id}: {match.message}" for match in matches]
    if any(problem.startswith("E") for problem in found):
        return found
    template, _ = decode_str(text)
    return [*found, *_policies(template["Resources"]), *_doors(template["Resources"])]


def _policies(resources: dict[str, Any]) -> Iterator[str]:
    for name, resource in resources.items():
        properties = resource["Properties"]
        documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
        documents += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
        for statement in (each for document in documents for each in document["Statement"]):
            yield from _statement(name, statement)
        for managed in properties.get("ManagedPolicyArns", []):
            if not isinstance(managed, dict):
                yield f"{name}: {managed} is a policy for everybody's needs"


def _statement(name: str, statement: dict[str, Any]) -> Iterator[str]:
    actions = listed(statement["Action"])
    for action in actions:
        if "*" in action:
            yield f"{name}: {action} allows what nobody has read"
    everywhere = "*" in [str(each) for each in listed(statement["Resource"])]
    if everywhere and not all(re.match(r"ec2:Describe", action) for action in actions):
        yield f"{name}: {', '.join(actions)} on every resource"
    changes = {"ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"} & set(actions)
    instances = any("instance/*" in str(each) for each in listed(statement["Resource"]))
    if (changes or (instances and "ec2:RunInstances" in actions)) and "Condition" not in statement:
        yield f"{name}: {', '.join(actions)} without a condition"


def _doors(resources: dict[str, Any]) -> Iterator[str]:
    for name, resource in resources.items():
        properties = resource["Properties"]
        rules = properties.get("SecurityGroupIngress", [])
        rules = [*rules, properties] if resource["Type"] == "AWS::EC2::SecurityGroupIngress" else rules
        for rule in rules:
            if rule.get("CidrIp") in ("0.0.0.0/0", "::/0"):
                yield f"{name}: port {rule.get('FromPort')} is open to the whole internet"


def listed(value: Any) -> list[Any]:
    """One may stand for a list of one in a policy."""
    return value if isinstance(value, list) else [value]
