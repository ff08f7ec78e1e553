import subprocess
import sys

import pytest

from pipelines.pretrain.config import PretrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"global_batch": 10, "workers": 12},
            "workers=12 is more than global_batch=10",
        ),
        ({"model": {"preset": "gpt5"}}, "'gpt5' does not exist; choose one of tiny-100k"),
        ({"model": {"n_heads": 7}}, "d_model=192 over n_heads=7"),
        ({"seq_len": 600}, "seq_len=600 is longer than the model's max_seq_len=256"),
        (
            {"model": {"preset": "tiny-100k"}, "optimizer": {"head_scale": 2}},
            "the head of tiny-100k is its embedding table",
        ),
        ({"optimizer": {"learning_rate": 1e-4}}, "min_learning_rate=0.0003 is above learning_rate=0.0001"),
    ],
)
def test_impossible_values_are_refused_with_the_mend(fields, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**fields)


def test_how_is_not_hashed_and_what_is():
    base = PretrainConfig()
    how = {"workers": 2, "micro_batch": 4, "log_every": 1, "evaluate_every": 7, "wandb": "disabled"}
    assert PretrainConfig(**how).what() == base.what()
    for what in ({"steps": 7}, {"seed": 1}, {"precision": "fp32"}, {"optimizer": {"weight_decay": 0.2}}):
        assert PretrainConfig(**what).what() != base.what()


def test_a_model_is_what_its_shape_says_and_not_what_it_is_called():
    base = PretrainConfig(model={"preset": "tiny-100k"}).what()
    spelled_out = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 128}
    assert base["model"].items() >= spelled_out.items()
    assert PretrainConfig(model={"preset": "tiny-100k"} | spelled_out).what() == base
    assert PretrainConfig(model={"preset": "tiny-100k", "n_layers": 3}).what() != base


def test_configuration_imports_neither_torch_nor_ray():
    program = (
        "import sys, pipelines.pretrain.config, pipelines.finetune.config;"
        "print(sorted({'torch', 'ray'} & sys.modules.keys()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"
