"""To and from Hugging Face Llama directories, which transformers and vLLM load unchanged.

Their layout keeps q, k, v and gate, up apart and pads no vocabulary; the rotary halves agree with ours.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.models.attention import split_qkv
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.models.hugging_face_tokenizer import export_tokenizer
from llm.models.load import build

# ours -> theirs, for the parameters that map one to one
TOP_NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.down": "mlp.down_proj",
}


def export_llama(
    state: dict[str, Tensor],
    config: ModelConfig,
    out_dir: Path,
    *,
    tokenizer_model: Path | None = None,
    special_ids: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config.json, generation_config.json, model.safetensors, and the tokenizer if one is given.

    `special_ids` are entries such as {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    ids = special_ids or {}
    (out_dir / "config.json").write_text(json.dumps(_llama_config(config, dtype) | ids, indent=2) + "\n")
    (out_dir / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in to_llama(state, config).items()}
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})
    if tokenizer_model is not None:
        export_tokenizer(tokenizer_model, out_dir, ids, config.max_seq_len)


def import_llama(path: Path) -> tuple[Decoder, ModelConfig]:
    """The Decoder equal to a Hugging Face Llama directory (one or several safetensors files), in fp32.

    Raises ValueError for what our decoder does not have: biases, scaled rotary positions, other activations.
    """
    fields = json.loads((path / "config.json").read_text())
    config = _our_config(fields, path)
    theirs: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        theirs |= load_file(file)
    model = build(config).to_empty(device="cpu")
    model.load_state_dict(from_llama(theirs, config))
    return model.eval(), config  # type: ignore[return-value]


def to_llama(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under their names; fused matrices are split and vocabulary padding is cut off."""
    theirs: dict[str, Tensor] = {}
    for ours, name in TOP_NAMES.items():
        if f"{ours}.weight" in state:
            theirs[f"{name}.weight"] = state[f"{ours}.weight"][
                : config.vocab_size if ours != "norm" else None
            ]
    for layer in range(config.n_layers):
        block, prefix = f"blocks.{layer}", f"model.layers.{layer}"
        for ours, name in BLOCK_NAMES.items():
            theirs[f"{prefix}.{name}.weight"] = state[f"{block}.{ours}.weight"]
        qkv = split_qkv(state[f"{block}.attention.qkv.weight"], config)
        gate_up = state[f"{block}.mlp.gate_up.weight"].chunk(2)
        for name, tensor in zip("qkv", qkv, strict=True):
            theirs[f"{prefix}.self_attn.{name}_proj.weight"] = tensor
        for name, tensor in zip(("gate", "up"), gate_up, strict=True):
            theirs[f"{prefix}.mlp.{name}_proj.weight"] = tensor
    return theirs


def from_llama(theirs: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Their state dict under our names, in fp32, with zero rows for the vocabulary padding."""
    state: dict[str, Tensor] = {}
    for ours, name in TOP_NAMES.items():
        if ours == "head" and config.tie_embeddings:
            continue
        tensor = theirs[f"{name}.weight"].float()
        rows = config.padded_vocab_size - config.vocab_size if ours != "norm" else 0
        state[f"{ours}.weight"] = (
            torch.cat((tensor, tensor.new_zeros(rows, *tensor.shape[1:]))) if rows else tensor
        )
    for layer in range(config.n_layers):
        block, prefix = f"blocks.{layer}", f"model.layers.{layer}"
        for ours, name in BLOCK_NAMES.items():
            state[f"{block}.{ours}.weight"] = theirs[f"{prefix}.{name}.weight"].float()
        qkv = [theirs[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkv"]
        gate_up = [theirs[f"{prefix}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        state[f"{block}.attention.qkv.weight"] = torch.cat(qkv).float()
        state[f"{block}.mlp.gate_up.weight"] = torch.cat(gate_up).float()
    return state


def _llama_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _our_config(fields: dict[str, Any], path: Path) -> ModelConfig:
    if fields.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type is {fields.get('model_type')!r}; only llama can be imported")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    wanted = {
        "rope type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "hidden_act": (fields.get("hidden_act", "silu"), "silu"),
        "attention_bias": (fields.get("attention_bias", False), False),
        "mlp_bias": (fields.get("mlp_bias", False), False),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ValueError(f"{path}: {name} is {found!r}; only {needed!r} can be imported")
    return ModelConfig(
        vocab_size=fields["vocab_size"],
        d_model=fields["hidden_size"],
        n_layers=fields["num_hidden_layers"],
        n_heads=fields["num_attention_heads"],
        n_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
        head_dim=fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"],
        d_ff=fields["intermediate_size"],
        max_seq_len=fields["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", fields.get("rope_theta", 10000.0)),
        norm_eps=fields["rms_norm_eps"],
        tie_embeddings=fields.get("tie_word_embeddings", False),
    )
