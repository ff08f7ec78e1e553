"""Models to and from transformers, which is the judge: logits and gradients in both directions."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm.models.config import ModelConfig, RopeScaling
from llm.models.hugging_face.directory import export_model, import_model
from llm.models.hugging_face.fields import Unsupported
from llm.models.load import build

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
        torch.testing.assert_close(
            gradient, their_gradients[each], atol=1e-6, rtol=1e-4, msg=lambda m: f"{each}: {m}"
        )
