import subprocess
import sys

import pytest

from pipelines.finetune.config import FinetuneConfig
from pipelines.pretrain.config import PretrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"global_batch": 10, "workers": 12},
            "workers=12 is more than global_batch=10",
        ),
        ({"model": {"preset": "gpt5"}}, "'gpt5' does not exist; did you mean gpt2"),
        ({"model": {"n_heads": 7}}, "d_model=192 over n_heads=7"),
        ({"seq_len": 600}, "seq_len=600 is longer than the model's max_seq_len=256"),
        (
            {"model": {"preset": "tiny-100k"}, "optimizer": {"head_scale": 2}},
            "the head of tiny-100k is its embedding table",
        ),
        (
            {"model": {"preset": "t5-tiny"}, "document_mask": True},
            "document_mask keeps documents apart in a decoder, and t5-tiny is none",
        ),
        (
            {"model": {"preset": "bert-base"}, "document_mask": True},
            "document_mask keeps documents apart in a decoder, and bert-base is none",
        ),
        (
            {"model": {"preset": "bert-tiny"}, "optimizer": {"head_scale": 2}},
            "the head of bert-tiny is its embedding table",
        ),
        (
            {"objective": {"mask_rate": 0.4}},
            "objective.mask_rate=0.4 is for an encoder, and quickstart-1m is none",
        ),
        (
            {"model": {"preset": "bert-tiny"}, "objective": {"noise_density": 0.4}},
            "objective.noise_density=0.4 is for an encoder-decoder, and bert-tiny is none",
        ),
        (
            {"model": {"preset": "bert-tiny"}, "seq_len": 32, "objective": {"mask_rate": 0.015}},
            "seq_len=32 with objective.mask_rate=0.015 masks no token",
        ),
        ({"model": {"preset": "t5-tiny"}, "objective": {"noise_density": 1}}, "less than 1"),
        (
            {
                "model": {"preset": "t5-tiny"},
                "seq_len": 512,
                "objective": {"noise_density": 0.3, "mean_span_length": 1},
            },
            "leaves out 153 spans, and there are 100 sentinels",
        ),
        (
            {
                "model": {"preset": "t5-tiny"},
                "seq_len": 512,
                "objective": {"noise_density": 0.6, "mean_span_length": 20},
            },
            "gives the decoder 7.. tokens, more than the model's max_seq_len=512",
        ),
        ({"model": {"preset": "t5-tiny"}, "seq_len": 2}, "the shortest text with a hole takes 3 tokens"),
        ({"parallel": {"tensor": 2}}, "tensor=2 .* = 2 does not divide 1 workers: take a multiple of 2"),
        ({"workers": 2, "parallel": {"tensor": 2}}, "tensor=2 does not divide n_kv_heads=1"),
        ({"workers": 2, "parallel": {"expert": 2}}, "expert=2: this model has no experts to divide"),
        (
            {"workers": 4, "parallel": {"pipeline": 2}, "global_batch": 12},
            "pipeline=2 keeps .* a share of 6 sequences makes 1 of micro_batch=8: lower micro_batch to 3",
        ),
        ({"workers": (2, 4), "parallel": {"replicate": 2}}, "only sharded; give one number of workers"),
        (
            {"workers": 4, "parallel": {"context": 4}, "seq_len": 100},
            "seq_len=100 is not divisible by 2 · context=8: .* make it 96 or 104",
        ),
        ({"optimizer": {"learning_rate": 1e-4}}, "min_learning_rate=0.0003 is above learning_rate=0.0001"),
        ({"optimizer": {"decay_shape": "linear"}}, "decay_shape=linear is an option of decay=wsd"),
        ({"optimizer": {"muon_momentum": 0.9}}, "muon_momentum=0.9 is an option of algorithm=muon"),
        (
            {"evaluate_beside": True, "evaluate_every": 7},
            "evaluate_every=7: .* say how often by checkpoint_every",
        ),
        ({"float8": True, "precision": "fp32"}, "leave out --precision fp32"),
    ],
)
def test_impossible_values_are_refused_with_the_mend(fields, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**fields)


def test_checkpoints_that_are_evaluated_beside_are_not_evaluated_in_the_loop():
    assert PretrainConfig(evaluate_beside=True).recipe(steps=9).evaluate_every == 0
    assert PretrainConfig(evaluate_beside=True).what() == PretrainConfig().what()


def test_how_is_not_hashed_and_what_is():
    base = PretrainConfig()
    how = {"workers": 2, "micro_batch": 4, "log_every": 1, "evaluate_every": 7, "wandb": "disabled"}
    assert PretrainConfig(**how).what() == base.what()
    for what in ({"steps": 7}, {"seed": 1}, {"precision": "fp32"}, {"optimizer": {"weight_decay": 0.2}}):
        assert PretrainConfig(**what).what() != base.what()


def test_options_that_came_later_change_no_version_until_they_are_used():
    base = PretrainConfig()
    assert set(base.what()["optimizer"]) == {
        *("learning_rate", "min_learning_rate", "warmup_steps", "decay", "embedding_scale", "head_scale"),
        *("weight_decay", "beta1", "beta2", "clip_norm"),
    }
    for option in (
        {"algorithm": "muon"},
        {"decay": "wsd", "decay_fraction": 0.1},
        {"z_loss": 1e-4},
        {"outlier_sigmas": 6},
        {"ema_decay": 0.999},
    ):
        what = PretrainConfig(optimizer=option).what()
        assert what["optimizer"] == base.what()["optimizer"] | option
    assert PretrainConfig(float8=True).what() == base.what() | {"float8": True}
    how = {"activation_checkpointing": "full", "deterministic": True, "compile": True}
    assert PretrainConfig(**how).what() == base.what()


def test_muon_of_experts_is_another_model_than_when_it_left_them_to_adamw():
    muon, experts = {"optimizer": {"algorithm": "muon"}}, {"model": {"preset": "moe-280m"}}
    assert PretrainConfig(**muon, **experts).what()["muon_moves"] == "experts"
    assert "muon_moves" not in PretrainConfig(**muon).what() | PretrainConfig(**experts).what()
    new = FinetuneConfig(**muon, **experts, tokenizer="small")
    assert new.what()["muon_moves"] == "experts"
    assert "muon_moves" not in FinetuneConfig(**muon).what()


def test_a_model_is_what_its_shape_says_and_not_what_it_is_called():
    base = PretrainConfig(model={"preset": "tiny-100k"}).what()
    spelled_out = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 128}
    assert base["model"].items() >= spelled_out.items()
    assert PretrainConfig(model={"preset": "tiny-100k"} | spelled_out).what() == base
    assert PretrainConfig(model={"preset": "tiny-100k", "n_layers": 3}).what() != base


def test_a_family_that_reads_whole_texts_takes_longer_ones_than_it_is_shown():
    """568 tokens of text make T5's inputs of 512 (Raffel et al. 2020, §3.1.2)."""
    windows = {
        preset: PretrainConfig(model={"preset": preset}, seq_len=512).window
        for preset in ("gpt2", "bert-base", "t5-small")
    }
    assert windows == {"gpt2": 512, "bert-base": 512, "t5-small": 568}
    assert PretrainConfig(model={"preset": "t5-small"}).trained_shape(32000).padded_vocab_size == 32128


def test_what_is_hidden_is_what_is_asked_for_of_those_who_guess_it_alone():
    """Decoders keep the versions that they had before there were others."""
    assert "objective" not in PretrainConfig(model={"preset": "gpt2"}).what()
    spans, masks = (PretrainConfig(model={"preset": preset}).what() for preset in ("t5-tiny", "bert-tiny"))
    assert spans["objective"] == {"noise_density": 0.15, "mean_span_length": 3.0}
    assert masks["objective"] == {"mask_rate": 0.15}


def test_configuration_imports_neither_torch_nor_ray():
    program = (
        "import sys, pipelines.pretrain.config, pipelines.finetune.config;"
        "print(sorted({'torch', 'ray'} & sys.modules.keys()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_how_a_model_is_divided_is_no_part_of_what_it_is():
    shape = {"preset": "tiny-100k"}
    divided = PretrainConfig(model=shape, workers=4, global_batch=2, parallel={"tensor": 2})
    assert divided.what() == PretrainConfig(model=shape, global_batch=2).what()
