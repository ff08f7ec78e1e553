"""What the code imports at run time is what pyproject.toml asks for."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("llm", "cluster", "pipelines")
OPTIONAL = ("float8",)
"""Extras whose packages are imported only where somebody asks for what they do."""
NAMES = {"yaml": "pyyaml"}
"""Packages that are imported under another name than they are installed by."""
PARTS = {
    "aiohttp": "ray",
    "botocore": "boto3",
    "grpc": "ray",
    "llvmlite": "numba",
    "s3transfer": "boto3",
    "starlette": "fastapi",
    "urllib3": "boto3",
}
"""What comes with another package, which works with it or says so in its interface."""


def imported() -> dict[str, str]:
    """Top-level packages, each with a file that imports it."""
    found = {}
    for path in (path for package in OURS for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                found[module.split(".")[0]] = path.name
                if "sentencepiece_model_pb2" in module:
                    found["protobuf"] = path.name
    return found


def test_every_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in OPTIONAL for line in project["optional-dependencies"][extra]]
    declared = {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in [*project["dependencies"], *extras]}
    known = {*sys.stdlib_module_names, *OURS}
    missing = {
        package: file
        for package, file in imported().items()
        if package not in known and NAMES.get(package, PARTS.get(package, package)) not in declared
    }
    assert missing == {}
