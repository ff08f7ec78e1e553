"""Adapters in the format of Hugging Face's peft, for the directory that the base model is exported to.

`adapter_config.json` says what they are; `adapter_model.safetensors` has A and B of every matrix, by the name
that transformers gives it.
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from llm.models.config import ModelConfig
from llm.models.hugging_face.directory import exporting_family
from llm.models.hugging_face.fields import Unsupported
from llm.models.lora import pairs
from llm.models.lora_config import LoraConfig

FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_adapter(
    state: dict[str, Tensor], config: ModelConfig, lora: LoraConfig, directory: Path, base: str
) -> None:
    """Write `FILES`.

    Args:
        state: of a model with adapters; only theirs are written.
        base: where the exported base model is to be found: a name on the hub, or a path.

    Raises:
        Unsupported: the model is exported to nothing, or to a family that keeps fused what we adapt in parts.
    """
    theirs = {pair.ours: pair for pair in exporting_family(config).pairs(config)}
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    for matrix, parts in pairs(state, config, lora):
        pair = theirs[f"{matrix}.weight"]
        if len(pair.theirs) != len(parts) or pair.transposed:
            raise Unsupported(f"{pair.theirs[0]} is {' and '.join(parts)} in one, whose adapters are apart")
        for name, (a, b) in zip(pair.theirs, parts.values(), strict=True):
            modules.append(name.removesuffix(".weight"))
            prefix = f"base_model.model.{modules[-1]}"
            tensors |= {f"{prefix}.lora_A.weight": a.contiguous(), f"{prefix}.lora_B.weight": b.contiguous()}
    fields = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if config.family == "encoder-decoder" else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(dict.fromkeys(module.rpartition(".")[2] for module in modules)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILES[0]).write_text(json.dumps(fields, indent=2) + "\n")
    save_file(tensors, directory / FILES[1], metadata={"format": "pt"})
