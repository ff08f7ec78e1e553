"""A preset and what is changed in it: versions, refusals, and that each option is trained, generated with and
exported, or said not to be.
"""

from pathlib import Path

import pytest
import torch

from cluster.artifacts.folder import Folder
from cluster.artifacts.store import ArtifactStore
from cluster.artifacts.workspace import Workspace
from llm.engine.encoder_decoder import answer
from llm.engine.engine import Engine
from llm.engine.generate import generate
from llm.engine.request import Request, SamplingParams
from llm.models.config import ModelConfig
from llm.models.load import build
from llm.models.presets import PRESETS
from llm.training.loss import next_token_targets, summed_cross_entropy
from llm.training.optimizer import adamw
from llm.training.step import train_step
from pipelines.finetune.config import FinetuneConfig
from pipelines.model_options import ModelOptions
from pipelines.pretrain.config import PretrainConfig
from pipelines.write_model import not_exported, write_language_model
from tests.unit.llm.engine.reference import generate_alone

torch.set_num_threads(1)
transformers = pytest.importorskip("transformers")

VOCAB = 200
LLAMA3 = {"kind": "llama3", "factor": 4.0, "original_max_seq_len": 16}
YARN = {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 16}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_version_that_it_had_before_there_were_more_options(preset: str) -> None:
    """Its own fields, as far as they are no defaults, and the size of a head."""
    fields = PRESETS[preset].shape
    head = {"head_dim": fields["d_model"] // fields["n_heads"]}
    defaults = {name: field.default for name, field in ModelConfig.model_fields.items()}
    expected = {name: value for name, value in (head | fields).items() if defaults[name] != value}
    assert ModelOptions(preset=preset).what() == expected


def test_options_enter_the_version_only_when_they_change_the_model() -> None:
    base = PretrainConfig()
    sizes = {"d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_seq_len"}
    assert set(base.what()["model"]) == sizes | {"tie_embeddings"}
    as_it_is = {"position": "rope", "rope_theta": 10000.0, "qk_norm": False, "norm": "rms", "gated": True}
    assert PretrainConfig(model=as_it_is).what() == base.what()
    changed = {"qk_norm": True, "sliding_window": 9, "rope_scaling": LLAMA3}
    assert PretrainConfig(model=changed).what()["model"] == base.what()["model"] | changed
    assert "model" not in FinetuneConfig().what()
    # A base of frequencies that nobody reads.
    alibi = ModelOptions(preset="llama-1b", position="alibi").what()
    assert alibi.pop("position") == "alibi"
    assert alibi == {k: v for k, v in ModelOptions(preset="llama-1b").what().items() if k != "rope_theta"}


@pytest.mark.parametrize(
    "options, fields",
    [
        ({"preset": "gpt2", "n_heads": 4}, {"n_heads": 4, "n_kv_heads": 4, "head_dim": 192}),
        ({"preset": "llama3-8b", "n_heads": 16}, {"n_heads": 16, "n_kv_heads": 8, "head_dim": 256}),
        ({"preset": "gpt2", "n_heads": 4, "n_kv_heads": 2}, {"n_heads": 4, "n_kv_heads": 2}),
        ({"preset": "t5-small", "n_heads": 4}, {"n_kv_heads": 4, "head_dim": 64}),
        ({"head_dim": 32}, {"head_dim": 32, "d_model": 192, "n_heads": 3}),
        ({"preset": "t5-tiny", "n_layers": 1, "n_encoder_layers": 3}, {"n_layers": 1, "n_encoder_layers": 3}),
        ({"preset": "mixtral-8x7b", "n_experts": 0}, {"n_experts": 0, "experts_per_token": 0}),
        ({"n_experts": 4, "experts_per_token": 1}, {"n_experts": 4, "experts_per_token": 1}),
        ({"preset": "t5-tiny", "tie_embeddings": False}, {"tie_embeddings": False, "scale_logits": False}),
        ({"preset": "bert-tiny", "norm_placement": "pre"}, {"norm_placement": "pre", "norm": "layer"}),
        ({"activation": "relu", "gated": False}, {"activation": "relu", "gated": False}),
        ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"preset": "gpt2", "position": "rope", "rope_theta": 5e5}, {"position": "rope", "rope_theta": 5e5}),
    ],
)
def test_an_option_is_the_models(options: dict, fields: dict) -> None:
    shape = ModelOptions(**options).shape(VOCAB)
    assert {name: getattr(shape, name) for name in fields} == fields


@pytest.mark.parametrize(
    "given, turns",
    [
        ({"kind": "linear", "factor": 2}, (1, 4)),
        (LLAMA3, (1, 4)),
        (LLAMA3 | {"low_frequency": 0.5}, (0.5, 4)),
        (YARN, (1, 32)),
        (YARN | {"high_frequency": 8}, (1, 8)),
    ],
)
def test_scaling_has_the_turns_of_its_paper(given: dict, turns: tuple[float, float]) -> None:
    scaling = ModelOptions(rope_scaling=given).shape(VOCAB).rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == (given["kind"], given["factor"])
    assert (scaling.low_frequency, scaling.high_frequency) == turns
    assert scaling.original_max_seq_len == given.get("original_max_seq_len", 256)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"preset": "gtp2"}, r"model preset 'gtp2' does not exist; did you mean gpt2\? `manta models` lists"),
        ({"preset": "xyz"}, "'xyz' does not exist; `manta models` lists all"),
        ({"n_heads": 7}, "^model: d_model=192 over n_heads=7"),
        ({"head_dim": 7}, "head_dim=7 must be even, for rotary positions: change n_heads or head_dim"),
        ({"position": "alibi", "rope_theta": 5e5}, "rope_theta=500000.0 .* position=alibi: leave it out"),
        ({"preset": "gpt2", "rope_theta": 5e5}, "position=learned: leave it out, or take position=rope"),
        ({"position": "none", "rope_scaling": LLAMA3}, "rope_scaling .* position=none: leave it out"),
        ({"rope_scaling": {"factor": 4}}, "rope_scaling.factor=4.0 .* give rope_scaling.kind too"),
        ({"rope_scaling": {"kind": "linear"}}, "rope_scaling.kind=linear needs rope_scaling.factor"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2}}, "needs rope_scaling.original_max_seq_len"),
        (
            {"rope_scaling": {"kind": "linear", "factor": 2, "low_frequency": 1}},
            "rope_scaling.low_frequency=1.0 is for llama3 and yarn; leave it out",
        ),
        ({"rope_scaling": LLAMA3 | {"low_frequency": 9}}, "^model.rope_scaling: low_frequency=9.0 must be"),
        ({"preset": "bert-tiny", "sliding_window": 8}, "sliding_window is for models that look back"),
        ({"preset": "bert-tiny", "tie_embeddings": False}, "an encoder's head is its embedding table"),
        ({"n_encoder_layers": 2}, "n_encoder_layers=2 does not go with family=decoder"),
        ({"preset": "t5-tiny", "position": "alibi"}, "position=alibi: an encoder-decoder takes relative"),
        ({"preset": "t5-tiny", "qk_norm": True}, "qk_norm: t5-tiny does not divide scores .* take a preset"),
        ({"n_experts": 4}, "experts_per_token=0 must be from 1 to n_experts=4"),
        ({"preset": "gpt2", "n_experts": 4, "experts_per_token": 2}, "experts are for decoders without bias"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_mend(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        ModelOptions(**options).shape(VOCAB)
    assert "Value error" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=message.lstrip("^")):
        PretrainConfig(model=options)


def trained(options: dict) -> torch.nn.Module:
    """Of large initial weights, for logits that are far apart; two steps of it."""
    config = PretrainConfig(model=options, seq_len=32, steps=2).model.shape(VOCAB)
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() == 2 else 1)
    optimizer = adamw(model, 1e-2, 0.1, (0.9, 0.95))
    source = torch.randint(8, VOCAB, (2, 20), generator=torch.Generator().manual_seed(4))
    inputs = [source] if config.family == "encoder-decoder" else []

    def loss_sum(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(
            *inputs,
            tokens,
            readout=lambda hidden, weight, bias: summed_cross_entropy(
                hidden, weight, targets, config.vocab_size, bias
            ),
        )

    rows = torch.randint(8, VOCAB, (2, 32), generator=torch.Generator().manual_seed(3))
    part = (rows, next_token_targets(rows))
    losses = [train_step(model, optimizer, [part], loss_sum, 1e-2, 1.0).loss for _ in range(3)]
    assert losses[2] < losses[0]
    return model.eval()


SMALL = {"preset": "tiny-100k", "max_seq_len": 64}
TRAINED = {
    "alibi": (SMALL | {"position": "alibi"}, "position=alibi"),
    "none": (SMALL | {"position": "none"}, "position=none"),
    "sinusoidal, post-norm": (SMALL | {"position": "sinusoidal", "norm_placement": "post"}, "position=sinu"),
    "relative with a window": (SMALL | {"position": "relative", "sliding_window": 9}, "position=relative"),
    "qk-norm": (SMALL | {"qk_norm": True}, "qwen3"),
    "qk-norm with a window": (SMALL | {"qk_norm": True, "sliding_window": 9}, "qk_norm=True"),
    "window": (SMALL | {"sliding_window": 9, "tie_embeddings": False}, "mistral"),
    "llama3": (SMALL | {"rope_scaling": LLAMA3, "rope_theta": 500.0}, "llama"),
    "yarn": (SMALL | {"rope_scaling": YARN}, "llama"),
    "linear": (SMALL | {"rope_scaling": {"kind": "linear", "factor": 4}}, "llama"),
    "long heads, not gated": (SMALL | {"head_dim": 32, "gated": False, "activation": "relu"}, "gated=False"),
    "experts": (SMALL | {"n_experts": 4, "experts_per_token": 2}, "mixtral"),
    "gpt2 with fewer heads": (
        {"preset": "gpt2", "d_model": 48, "n_layers": 2, "n_heads": 4, "d_ff": 64, "max_seq_len": 64},
        "gpt2",
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_an_option_is_trained_generated_with_and_goes_out_or_is_said_not_to(
    name: str, tmp_path: Path
) -> None:
    options, kind_or_reason = TRAINED[name]
    model = trained(options)
    prompts = [list(range(8, 8 + length)) for length in (1, 14, 40)]
    greedy = SamplingParams(max_tokens=12, temperature=0.0)
    requests = [Request(f"r{i}", prompt, greedy) for i, prompt in enumerate(prompts)]
    for prompt, completion in zip(
        prompts, generate(Engine(model, max_batch=2, step_tokens=9), requests), strict=True
    ):
        assert completion.response_ids == generate_alone(model, prompt, greedy)[0]

    said = not_exported(model.config)
    workspace = Workspace(Folder(ArtifactStore(tmp_path).storage, "models/a/b"))
    # The tokenizer is of no concern here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.models.hugging_face.directory.export_tokenizer", lambda *_: None)
        files = write_language_model(workspace, model.state_dict(), model.config, b"", chats=False)
    if "=" in kind_or_reason:
        assert list(files) == ["weights.safetensors"]
        assert len(said) == 1
        assert kind_or_reason in said[0]
        return
    assert said == []
    theirs = transformers.AutoModelForCausalLM.from_pretrained(workspace.path / "export").eval()
    assert theirs.config.model_type == kind_or_reason
    tokens = torch.randint(8, VOCAB, (2, 50), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = model(tokens)[..., :VOCAB]
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"position": "rope", "n_encoder_layers": 1, "rope_scaling": LLAMA3},
        {"sliding_window": 5, "tie_embeddings": False},
        {"position": "sinusoidal", "norm": "layer", "norm_placement": "post"},
        {"position": "none", "gated": True, "activation": "silu"},
    ],
)
def test_an_encoder_decoder_of_other_parts_is_trained_and_answers(options: dict) -> None:
    model = trained({"preset": "t5-tiny", "max_seq_len": 64} | options)
    inputs = torch.randint(8, VOCAB, (2, 24), generator=torch.Generator().manual_seed(6))
    answers = answer(model, inputs, start_id=0, stop_id=VOCAB, max_tokens=14)
    for row, written in zip(inputs, answers, strict=True):
        tokens = [0]
        while len(tokens) <= 14:
            with torch.no_grad():
                tokens.append(int(model(row[None], torch.tensor([tokens]))[0, -1, :VOCAB].argmax()))
        assert written == tokens[1:]


@pytest.mark.parametrize(
    "options",
    [
        {"position": "alibi"},
        {"position": "relative", "norm": "rms"},
        {"position": "rope", "qk_norm": True, "norm_placement": "pre", "gated": True},
    ],
)
def test_an_encoder_of_other_parts_is_trained_and_sees_both_sides(options: dict) -> None:
    model = trained({"preset": "bert-tiny", "max_seq_len": 64} | options)
    tokens = torch.randint(8, VOCAB, (1, 24), generator=torch.Generator().manual_seed(6))
    changed = tokens.clone()
    changed[0, -1] = 8 if tokens[0, -1] != 8 else 9
    with torch.no_grad():
        before, after = model(tokens)[0, 0], model(changed)[0, 0]
    assert not torch.allclose(before, after)
