"""Models to and from transformers, which is the judge: logits and gradients in both directions."""

import json
from pathlib import Path

import pytest
import safetensors.torch as safetensors
import torch
from torch import Tensor

from llm.models.config import ModelConfig, RopeScaling
from llm.models.hugging_face.directory import export_model, import_model
from llm.models.hugging_face.fields import Unsupported
from llm.models.hugging_face.vocabulary import with_rows
from llm.models.load import build
from llm.models.presets import model_config

torch.set_num_threads(1)
transformers = pytest.importorskip("transformers")

VOCAB = 333
SMALL = {"vocab_size": VOCAB, "d_model": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 80}
DECODER = SMALL | {"max_seq_len": 64, "norm_eps": 1e-5}
GPT2 = DECODER | {
    "n_kv_heads": 4,
    "position": "learned",
    "norm": "layer",
    "activation": "gelu_tanh",
    "gated": False,
    "bias": True,
}
T5 = SMALL | {
    "family": "encoder-decoder",
    "n_encoder_layers": 3,
    "n_kv_heads": 4,
    "head_dim": 8,
    "max_seq_len": 64,
    "position": "relative",
    "relative_buckets": 8,
    "relative_max_distance": 20,
    "norm_eps": 1e-6,
    "attention_scale": 1.0,
}
BERT = GPT2 | {
    "family": "encoder",
    "norm_placement": "post",
    "norm_eps": 1e-12,
    "activation": "gelu",
    "embedding_norm": True,
    "n_token_types": 2,
}


def scaled(kind: str, **turns: float) -> RopeScaling:
    original = 64 if kind == "linear" else 16  # linear scaling does without it, and theirs does not say
    return RopeScaling(kind=kind, factor=4, original_max_seq_len=original, **turns)


SHAPES = {
    "gpt2": GPT2,
    "gpt2 untied, with relu": GPT2 | {"tie_embeddings": False, "activation": "relu"},
    "llama": DECODER | {"tie_embeddings": False, "rope_theta": 500.0},
    "llama tied, with biases and long heads": DECODER | {"bias": True, "head_dim": 16},
    "llama linear": DECODER | {"rope_scaling": scaled("linear")},
    "llama 3": DECODER | {"rope_scaling": scaled("llama3", low_frequency=0.5, high_frequency=2.0)},
    "llama yarn": DECODER | {"rope_scaling": scaled("yarn", low_frequency=1.0, high_frequency=8.0)},
    "mistral": DECODER | {"sliding_window": 7, "tie_embeddings": False},
    "mixtral": DECODER | {"n_experts": 4, "experts_per_token": 2, "tie_embeddings": False, "d_ff": 40},
    "mixtral tied, with a window": DECODER | {"n_experts": 3, "experts_per_token": 1, "sliding_window": 7},
    "qwen3": DECODER | {"qk_norm": True, "head_dim": 16},
    "t5": T5 | {"activation": "relu", "gated": False, "scale_logits": True},
    "t5 v1.1": T5 | {"activation": "gelu_tanh", "tie_embeddings": False},
    "bert": BERT,
}
CLASSES = {
    "decoder": transformers.AutoModelForCausalLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    "encoder": transformers.AutoModelForMaskedLM,
}


def random_model(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    """All parameters away from their initial values: biases, norms and relative biases matter, too."""
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batch(family: str) -> dict[str, Tensor]:
    """Inputs as theirs are called, with padding where the family has a mask for it."""
    generator = torch.Generator().manual_seed(1)
    rows = {"input_ids": torch.randint(0, VOCAB, (2, 30), generator=generator)}
    if family == "encoder-decoder":
        rows["decoder_input_ids"] = torch.randint(0, VOCAB, (2, 21), generator=generator)
        rows["attention_mask"] = torch.ones(2, 30, dtype=torch.long)
        rows["attention_mask"][0, 17:] = 0
    if family == "encoder":
        rows["token_type_ids"] = torch.randint(0, 2, (2, 30), generator=generator)
    return rows


def our_logits(model: torch.nn.Module, family: str, rows: dict[str, Tensor]) -> Tensor:
    if family == "encoder-decoder":
        valid = rows["attention_mask"].bool()
        return model(rows["input_ids"], rows["decoder_input_ids"], valid)[..., :VOCAB]
    types = {"token_types": rows["token_type_ids"]} if family == "encoder" else {}
    return model(rows["input_ids"], **types)[..., :VOCAB]


def loaded(state: dict[str, Tensor], config: ModelConfig) -> torch.nn.Module:
    model = build(config).to_empty(device="cpu")
    model.load_state_dict(state)
    return model.eval()


def export(model: torch.nn.Module, directory: Path, **more: object) -> None:
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    export_model(model.state_dict().__getitem__, model.config, directory, special_ids=ids, **more)


@pytest.mark.parametrize("name", SHAPES)
def test_both_directions_give_the_same_logits_and_gradients(name: str, tmp_path: Path) -> None:
    config = ModelConfig(**SHAPES[name])
    ours = random_model(config)
    export(ours, tmp_path / "ours")
    theirs, report = CLASSES[config.family].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id) == (3, 0)

    rows = batch(config.family)
    logits, their_logits = our_logits(ours, config.family, rows), theirs.eval()(**rows).logits
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)

    targets = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * targets).mean().backward()
    (their_logits * targets).mean().backward()
    with torch.no_grad():
        gradients = {each: parameter.grad for each, parameter in ours.named_parameters()}
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    state, back = import_model(tmp_path / "theirs")
    assert back == config
    again = loaded(state, back)
    torch.testing.assert_close(our_logits(again, config.family, rows), their_logits, atol=1e-5, rtol=1e-5)

    # Their gradients under our names, by way of a directory that holds them as if they were weights.
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    their_gradients, _ = import_model(tmp_path / "gradients")
    assert set(their_gradients) == set(gradients)
    for each, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[each], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_old_checkpoints_of_half_precision_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """Pickled, in two files with an index, without the prefix that came later, with masks and a tied head."""
    ours = random_model(ModelConfig(**GPT2))
    export(ours, tmp_path / "new", dtype=dtype)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "new")
    tensors = {name.removeprefix("transformer."): each for name, each in theirs.state_dict().items()}
    assert tensors["wte.weight"].dtype == dtype
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text((tmp_path / "new/config.json").read_text())
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for number, file in enumerate(files):
        torch.save(
            dict(list(tensors.items())[number::2]), old / file, _use_new_zipfile_serialization=number == 0
        )
    names = list(tensors)
    index = {"weight_map": {name: files[names.index(name) % 2] for name in names}}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    state, config = import_model(old)
    assert {each.dtype for each in state.values()} == {torch.float32}
    for name, tensor in import_model(tmp_path / "new")[0].items():
        assert torch.equal(state[name], tensor), name
    tokens = batch("decoder")["input_ids"]
    expected = theirs.float()(tokens).logits
    torch.testing.assert_close(loaded(state, config)(tokens)[..., :VOCAB], expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_that_could_run_something_is_refused(tmp_path: Path) -> None:
    export(random_model(ModelConfig(**GPT2)), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"wte.weight": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Unsupported, match=r"pytorch_model\.bin: not a file of tensors alone"):
        import_model(tmp_path)


def test_large_exports_are_cut_into_files_with_an_index(tmp_path: Path) -> None:
    ours = random_model(ModelConfig(**SHAPES["qwen3"]))
    export(ours, tmp_path / "one")
    export(ours, tmp_path / "many", max_file_bytes=50_000)
    files = sorted((tmp_path / "many").glob("model-*-of-*.safetensors"))
    assert len(files) > 3
    largest_tensor = 64 * VOCAB * 4
    assert all(file.stat().st_size < max(50_000, largest_tensor) + 4096 for file in files)
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    one, many = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / each) for each in ("one", "many")
    )
    for name, tensor in one.state_dict().items():
        assert torch.equal(many.state_dict()[name], tensor), name
    for name, tensor in import_model(tmp_path / "many")[0].items():
        assert torch.equal(tensor[:VOCAB], ours.state_dict()[name][:VOCAB]), name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llama",
            {"attention_bias": True},
            "mlp_bias is false; with attention_bias true it must be the same",
        ),
        ("llama", {"hidden_act": "quick_gelu"}, 'hidden_act is "quick_gelu"; silu, swish, gelu, .* can be'),
        (
            "llama",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            r'rope_scaling.rope_type is "dynamic"; default, linear, llama3 and yarn can be imported',
        ),
        ("llama yarn", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0 can"),
        (
            "llama",
            {"model_type": "mamba"},
            'model_type is "mamba"; llama, mistral, qwen3, mixtral, gpt2, t5, bert can',
        ),
        ("llama", {"vocab_size": None}, "vocab_size is null; a number is needed"),
        ("llama", {"num_key_value_heads": 3}, "n_kv_heads=3 must divide n_heads=4"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is true; only false can be imported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true; only"),
        (
            "t5",
            {"feed_forward_proj": "gated-tanh"},
            'feed_forward_proj is "gated-tanh"; .* after gated-, can',
        ),
        ("bert", {"is_decoder": True}, "is_decoder is true; only false can be imported"),
        ("bert", {"hidden_act": "relu"}, 'hidden_act is "relu"; only "gelu" can be imported'),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, object], message: str
) -> None:
    export(random_model(ModelConfig(**SHAPES[name])), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(Unsupported, match=message) as refusal:
        import_model(tmp_path)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_missing_unexpected_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    export(random_model(ModelConfig(**SHAPES["llama"])), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.load_file(file)
    norm = tensors.pop("model.norm.weight")

    def refused(message: str, **more: Tensor) -> None:
        safetensors.save_file(tensors | more, file)
        with pytest.raises(Unsupported, match=message):
            import_model(tmp_path)

    refused("lacks model.norm.weight")
    tensors["model.norm.weight"] = norm
    refused("has, and we do not, model.layers.0.extra", **{"model.layers.0.extra": norm.clone()})
    refused(r"model.norm.weight has the shape \[47\]; .* \[48\]", **{"model.norm.weight": norm[:47].clone()})
    tied = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied))
    refused("lm_head.weight differs from model.embed_tokens.weight")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Unsupported, match=r"model\.safetensors: damaged"):
        import_model(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position": "alibi"}, "nearest is llama, mistral, but position=alibi where it has rope"),
        (
            {"qk_norm": True, "sliding_window": 8},
            "nearest is llama, mistral, but qk_norm=True where it has False",
        ),
        (GPT2 | {"n_kv_heads": 2}, "nearest is gpt2, but n_kv_heads=2 where it has 4"),
        (SHAPES["t5"] | {"scale_logits": False}, "nearest is t5, but scale_logits=False where it has True"),
        (
            model_config("transformer-base").model_dump(),  # GPT-2 has more of its fields, but no encoder.
            "nearest is t5, but position=sinusoidal where it has relative",
        ),
    ],
)
def test_shapes_that_transformers_lacks_are_not_exported(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    config = ModelConfig(**DECODER | fields)
    with pytest.raises(Unsupported, match=message):
        export_model(lambda name: torch.empty(0), config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_numbering_moves_rows_and_nothing_else() -> None:
    config = ModelConfig(**SHAPES["llama"])
    ours = random_model(config)
    rows = [5, None, 332, 0, *range(6, 300)]
    state, renumbered = with_rows(ours.state_dict(), config, rows)
    tokens = torch.tensor([[0, 2, 3, 10, len(rows) - 1]])
    before = torch.tensor([[rows[token] for token in tokens[0]]])
    got, expected = loaded(state, renumbered)(tokens)[..., : len(rows)], ours(before)[..., :VOCAB]
    for id, row in enumerate(rows):
        alike = expected.mean(-1) if row is None else expected[..., row]
        torch.testing.assert_close(got[..., id], alike, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="an id 333, the model 333 ids"):
        with_rows(ours.state_dict(), config, [333])
