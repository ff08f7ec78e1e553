"""Imports point one way, and what must be instant imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each part may import the parts named here (and itself); what is absent may import nothing of ours.
ALLOWED = {
    "pipelines": {"cluster", "llm"},
    "cluster": set(),
    "llm.models": set(),
    "llm.tokenizer": set(),
    "llm.text": set(),
    "llm.data": set(),
    "llm.planning": {"llm.models", "llm.data", "llm.training"},  # what it foresees is the step
    "llm.evaluation": {"llm.models", "llm.tokenizer", "llm.text", "llm.data"},
    "llm.engine": {"llm.models", "llm.tokenizer", "llm.text", "llm.data"},
    "llm.training": {"llm.models", "llm.tokenizer", "llm.text", "llm.data"},
    "llm.alignment": {"llm.models", "llm.tokenizer", "llm.text", "llm.data"},
}
STAGES = sorted(path.parent.name for path in ROOT.glob("pipelines/*/stage.py"))


def _modules() -> list[Path]:
    return [p for top in ("llm", "cluster", "pipelines") for p in sorted((ROOT / top).rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _part(module: str) -> str | None:
    """The part of the house that a module is in: `llm.models`, `cluster`, `pipelines`."""
    pieces = module.split(".")
    if pieces[0] == "llm":
        return ".".join(pieces[:2]) if len(pieces) > 1 else None
    return pieces[0] if pieces[0] in ("cluster", "pipelines") else None


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = _part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    imported = _imports(path)
    for module in imported:
        part = _part(module)
        if own is None or part is None or part == own:
            continue
        allowed = ALLOWED[own]
        assert part in allowed or part.split(".")[0] in allowed, f"{path} imports {module}"
    if own and own.startswith("llm"):
        assert not {m for m in imported if m.split(".")[0] == "ray"}, f"{path} imports ray"
    if "artifacts" in path.parts:
        assert not {m for m in imported if m.split(".")[0] in ("ray", "torch")}, f"{path} must stay instant"


def test_no_stage_imports_another() -> None:
    assert "pretrain" in STAGES
    for stage in set(STAGES) - {"quickstart"}:  # The quickstart is a list of stages, by name.
        for path in (ROOT / "pipelines" / stage).glob("*.py"):
            others = {m.split(".")[1] for m in _imports(path) if m.startswith("pipelines.")} & set(STAGES)
            assert others <= {stage}, f"{path} imports the stages {others - {stage}}"


def test_the_planner_imports_no_torch() -> None:
    code = "import llm.planning.memory, llm.planning.fit, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_configurations_import_neither_torch_nor_ray(stage: str) -> None:
    code = f"import pipelines.{stage}.config, sys; print([m for m in ('torch', 'ray') if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert answer.stdout.strip() == "[]"
