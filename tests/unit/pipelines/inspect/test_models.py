"""`manta models` in an instant, for people and for programs."""

import json
import subprocess
import sys

import pytest

from llm.models.presets import PRESETS
from pipelines.cli import run
from pipelines.inspect.models import scaled
from pipelines.inspect.models_page import PAGE, with_table


def test_all_presets_are_listed(capsys):
    assert run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(PRESETS)]] == list(PRESETS)
    assert run(["models", "--json"]) == 0
    listed = {each["preset"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["llama3-8b"]["parameters"] == 8_030_261_248
    # 6 FLOPs a parameter outside the embedding, and QKᵀ and AV: 12 · 32 · 4096 · 8192
    assert listed["llama3-8b"]["training_flops_per_token"] == pytest.approx(6 * 7.505e9 + 1.2885e10, rel=1e-3)
    assert listed["bert-base"]["parameters_in_blocks"] == 12 * (12 * 768**2 + 13 * 768)


def test_one_is_shown_with_what_training_it_takes(capsys):
    assert run(["models", "llama3-8b"]) == 0
    text = capsys.readouterr().out
    assert "8,030,261,248 parameters" in text
    assert "rope_theta: 500000.0" in text
    assert run(["models", "llama3-8b", "--json", "--micro-batch", "2", "--seq-len", "4096"]) == 0
    memory = json.loads(capsys.readouterr().out)["training_memory"]
    alone, shared = memory["per_gpu"][:2]
    assert alone["weights"] + alone["optimizer"] + alone["gradients"] == 16 * 8_030_261_248
    assert shared["gpus"] == 8
    assert shared["weights"] * 8 == alone["weights"]
    assert shared["activations"] == alone["activations"]
    assert shared["checkpointed_peak"] < shared["peak"]


@pytest.mark.parametrize(
    "arguments, mend",
    [
        (["lama3-8b"], "did you mean llama3-8b?"),
        (["gpt3"], "did you mean gpt3-small or gpt3-medium or gpt3-large?"),
        (["BERT-Base"], "did you mean bert-base?"),
        (["xyz"], "`manta models` lists all"),
        (["gpt2", "--seq-len", "2000"], "context of 1024"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, mend):
    assert run(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert mend in error
    assert len(error.splitlines()) == 1


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from pipelines.cli import run; run(['models', 'gpt2'])\n"
        "assert not {'torch', 'ray', 'numpy', 'rich.table'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_numbers_as_people_write_them():
    assert [scaled(n) for n in (74, 999_400, 124_439_808, 405_853_388_800)] == ["74", "999K", "124M", "406B"]


def test_the_committed_table_is_the_generated_one():
    page = PAGE.read_text()
    assert page == with_table(page), "run `python -m pipelines.inspect.models_page`"
