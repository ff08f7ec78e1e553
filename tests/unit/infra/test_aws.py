"""The cluster on EC2 and its access stack: by their schemas, and on a simulated AWS."""

import fnmatch
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

from tests.unit.infra.aws_checks import access_problems, cluster_problems, listed
from tests.unit.infra.kubernetes_checks import REPOSITORY

CLUSTER = (REPOSITORY / "cluster/aws.yaml").read_text()
ACCESS = (REPOSITORY / "infra/aws/access.yaml").read_text()
GROUP_PLACEHOLDER = "sg-00000000000000000"


def test_the_cluster_has_no_problem():
    assert cluster_problems(CLUSTER, ACCESS) == []


def test_the_access_stack_has_no_problem():
    assert access_problems(ACCESS) == []


CLUSTER_TYPOS = [
    ("idle_timeout_minutes:", "idle_timeout_minuts:", "idle_timeout_minuts"),
    ("max_workers: 4", "max_workers: four", "four"),
    ("head_node_type: head", "head_node_type: heads", "head_node_type"),
    ("min_workers: 2", "min_worker: 2", "min_worker"),
    ("InstanceType: m7i.xlarge", "InstanceTyp: m7i.xlarge", "InstanceTyp"),
    ("VolumeSize: 200", "VolumeSize: 200GB", "VolumeSize"),
    ("HttpTokens: required", "HttpToken: required", "HttpToken"),
    ("HttpTokens: required", "HttpTokens: optional", "IMDSv1"),
    ("Name: manta-worker", "Name: manta-workers", "manta-workers"),
    ("--dashboard-host", "--dashbord-host", "--dashbord-host"),
    ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "more than the head"),
    ("ray start --address", "ray strat --address", "strat"),
    ("|| echo '. ~/.manta_env'", "|| echo '. ~/.manta_env", "unexpected EOF"),
    ("~/manta/pipelines: pipelines", "~/manta/pipelines: pipeline", "pipeline"),
    ("RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token", "runs open"),
]


@pytest.mark.parametrize(("right", "wrong", "named"), CLUSTER_TYPOS)
def test_a_typo_planted_in_the_cluster_is_caught(right, wrong, named):
    assert right in CLUSTER
    found = cluster_problems(CLUSTER.replace(right, wrong), ACCESS)
    assert any(named in problem for problem in found), found


_PASS_ROLE_CONDITION = """
                Condition:
                  StringEquals:
                    iam:PassedToService: ec2.amazonaws.com"""
_WIDE = "arn:aws:iam::aws:policy/AmazonEC2FullAccess"
ACCESS_TYPOS = [
    ("s3:GetObject", "s3:GetObjekt", "getobjekt"),
    ("AWS::IAM::InstanceProfile", "AWS::IAM::InstancProfile", "InstancProfile"),
    ("AssumeRolePolicyDocument:", "AssumeRolPolicyDocument:", "AssumeRolPolicyDocument"),
    ("!GetAtt WorkerRole.Arn", "!GetAtt WorkerRol.Arn", "WorkerRol"),
    ("Action: ec2:RunInstances", 'Action: "ec2:*"', "ec2:* allows"),
    ("Resource: !Sub arn:${AWS::Partition}:s3:::${Bucket}/*", 'Resource: "*"', "on every resource"),
    ("CidrIp: !Ref SshFrom", "CidrIp: 0.0.0.0/0", "whole internet"),
    (_PASS_ROLE_CONDITION, "", "PassRole without a condition"),
    ("      RoleName:", f"      ManagedPolicyArns: [{_WIDE}]\n      RoleName:", "for everybody's needs"),
]


@pytest.mark.parametrize(("right", "wrong", "named"), ACCESS_TYPOS)
def test_a_typo_planted_in_the_access_stack_is_caught(right, wrong, named):
    assert right in ACCESS
    found = access_problems(ACCESS.replace(right, wrong))
    assert any(named in problem for problem in found), found


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """A simulated AWS with the stack in it; yields the security group's id."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts the key pair that it makes
    with mock_aws():
        vpc = boto3.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
        parameters = {"Bucket": "a-bucket", "Vpc": vpc, "SshFrom": "192.0.2.1/32"}
        stacks = boto3.client("cloudformation")
        stacks.create_stack(
            StackName="manta",
            TemplateBody=ACCESS,
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        )
        outputs = stacks.describe_stacks(StackName="manta")["Stacks"][0]["Outputs"]
        yield next(each["OutputValue"] for each in outputs if each["OutputKey"] == "SecurityGroup")


def test_ray_starts_the_nodes_with_our_profiles_and_our_security_group_only(aws):
    """Ray's own code for `ray up`, as far as EC2's answers go."""
    config = AWSNodeProvider.bootstrap_config(
        prepare_config(yaml.safe_load(CLUSTER.replace(GROUP_PLACEHOLDER, aws)))
    )
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in (("head", "head"), ("cpu", "worker"), ("gpu", "worker")):
        node = dict(config["available_node_types"][name]["node_config"])
        provider.create_node(node, {"ray-node-type": kind, "ray-node-name": name}, 1)

    instances = {_tag(each, "Name"): each for each in _instances()}
    assert {name: _profile(instance) for name, instance in instances.items()} == {
        "head": "manta-head",
        "cpu": "manta-worker",
        "gpu": "manta-worker",
    }
    for instance in instances.values():
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [aws]
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert _tag(instance, "ray-cluster-name") == "manta", "what the head's policy asks for"

    groups = {
        group["GroupName"]: group
        for group in boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    }
    assert set(groups) == {"default", "manta"}, "Ray made none of its own"
    sources = [source["CidrIp"] for rule in groups["manta"]["IpPermissions"] for source in rule["IpRanges"]]
    assert sources == ["192.0.2.1/32"]
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    assert roles == {"manta-head", "manta-worker"}, "Ray made none of its own"


EC2 = "arn:aws:ec2:us-west-2:123456789012"
WORKER, HEAD = (f"arn:aws:iam::123456789012:instance-profile/manta-{name}" for name in ("worker", "head"))
OURS, THEIRS = {"aws:ResourceTag/ray-cluster-name": "manta"}, {"aws:ResourceTag/ray-cluster-name": "other"}
DECISIONS: list[tuple[str, str, str, dict[str, str], bool]] = [
    ("worker", "s3:GetObject", "arn:aws:s3:::a-bucket/manta/models/base", {}, True),
    ("worker", "s3:PutObject", "arn:aws:s3:::another-bucket/x", {}, False),
    ("worker", "s3:DeleteBucket", "arn:aws:s3:::a-bucket", {}, False),
    ("worker", "ec2:RunInstances", f"{EC2}:instance/i-1", {}, False),
    ("head", "s3:PutObject", "arn:aws:s3:::a-bucket/manta/models/base", {}, True),
    ("head", "ec2:DescribeInstances", "*", {}, True),
    ("head", "ec2:TerminateInstances", f"{EC2}:instance/i-1", OURS, True),
    ("head", "ec2:TerminateInstances", f"{EC2}:instance/i-1", THEIRS, False),
    ("head", "ec2:CreateTags", f"{EC2}:instance/i-1", {"ec2:CreateAction": "RunInstances"}, True),
    ("head", "ec2:CreateTags", f"{EC2}:instance/i-1", THEIRS, False),
    ("head", "iam:PassRole", "arn:aws:iam::123456789012:role/manta-head", {}, False),
    ("head", "iam:CreateUser", "arn:aws:iam::123456789012:user/me", {}, False),
    ("head", "ec2:AuthorizeSecurityGroupIngress", f"{EC2}:security-group/sg-1", {}, False),
    ("head", "ec2:RunInstances", f"{EC2}:security-group/sg-1", {}, False),
]


def test_the_roles_allow_what_a_cluster_does_and_no_more(aws):
    for role, action, resource, context, expected in DECISIONS:
        assert allows(role, action, resource, context) == expected, (role, action, resource, context)
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert allows("head", "iam:PassRole", "arn:aws:iam::123456789012:role/manta-worker", to_ec2)
    for profile, tag, expected in ((WORKER, "manta", True), (HEAD, "manta", False), (WORKER, "other", False)):
        launch = {"ec2:InstanceProfile": profile, "aws:RequestTag/ray-cluster-name": tag}
        assert allows("head", "ec2:RunInstances", f"{EC2}:instance/*", launch) == expected, launch
    for part in (
        "subnet/subnet-1",
        "network-interface/*",
        "volume/*",
        "key-pair/key",
        f"security-group/{aws}",
    ):
        assert allows("head", "ec2:RunInstances", f"{EC2}:{part}", {}), part


def allows(role: str, action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a statement of the role's policies allows it. They have no denials and few conditions."""
    for statement in _statements(f"manta-{role}"):
        conditions = statement.get("Condition", {})
        assert statement["Effect"] == "Allow"
        assert set(conditions) <= {"StringEquals", "ArnEquals"}
        wanted = {key: value for each in conditions.values() for key, value in each.items()}
        if (
            action in listed(statement["Action"])
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
            and all(context.get(key) == value for key, value in wanted.items())
        ):
            return True
    return False


def _statements(role: str) -> list[dict[str, Any]]:
    """As they are in the simulated AWS, names filled in."""
    iam = boto3.client("iam")
    attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    inline = iam.list_role_policies(RoleName=role)["PolicyNames"]
    documents = [
        *(boto3.resource("iam").Policy(each["PolicyArn"]).default_version.document for each in attached),
        *(iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in inline),
    ]
    # Some come as text: JSON or Python's way of printing it. YAML reads both.
    read = [yaml.safe_load(each) if isinstance(each, str) else each for each in documents]
    return [statement for document in read for statement in document["Statement"]]


def _instances() -> list[dict[str, Any]]:
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def _tag(instance: dict[str, Any], key: str) -> str:
    return next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == key)


def _profile(instance: dict[str, Any]) -> str:
    return str(instance["IamInstanceProfile"]["Arn"].rpartition("/")[2])
