"""The final weights of a language model, in our form and in Hugging Face's."""

import shutil

from torch import Tensor

from cluster.artifacts.folder import FileEntry
from cluster.artifacts.workspace import Workspace
from llm.models.config import ModelConfig
from llm.models.hugging_face.adapter import FILES, export_adapter
from llm.models.hugging_face.directory import export_model, exporting_family
from llm.models.hugging_face.fields import Unsupported
from llm.models.load import save_model
from llm.models.lora_config import LoraConfig
from llm.tokenizer.special import ADDED_PIECES, special_ids
from pipelines.model_folder import EXPORT, WEIGHTS

ADAPTER = "adapter"


def write_language_model(
    workspace: Workspace,
    weights: dict[str, Tensor],
    config: ModelConfig,
    tokenizer_model: bytes,
    *,
    chats: bool,
) -> dict[str, FileEntry]:
    """Write weights.safetensors and export/; returns what the manifest says of them.

    Of a shape that transformers does not have there is no export/ (`not_exported`).

    chats: what it says ends with a turn too, and not with a document alone.
    """
    path = workspace.path
    save_model(path, weights, config)
    # A run that was killed here, and now goes on, may have written half of it.
    shutil.rmtree(path / EXPORT, ignore_errors=True)
    try:
        export_model(
            weights.__getitem__,
            config,
            path / EXPORT,
            tokenizer_model=tokenizer_model,
            added_pieces=ADDED_PIECES[config.family],
            special_ids=special_ids(chats=chats),
        )
    except Unsupported:  # perhaps only of the tokenizer, which is written last
        shutil.rmtree(path / EXPORT, ignore_errors=True)
    exported = sorted(
        each.relative_to(path).as_posix() for each in (path / EXPORT).rglob("*") if each.is_file()
    )
    return workspace.publish([WEIGHTS, *exported])


def not_exported(config: ModelConfig) -> list[str]:
    """What to say before a model is trained that will have no export/, in a line, and what is in the way."""
    try:
        exporting_family(config)
    except Unsupported as reason:
        return [f"the model will have no export/ for Hugging Face: {reason}"]
    return []


def write_adapter(
    workspace: Workspace, weights: dict[str, Tensor], config: ModelConfig, lora: LoraConfig, base: str
) -> dict[str, FileEntry]:
    """Write adapter/, for those who have the base model, `base`; returns what the manifest says of it.

    There is none where the format cannot say what the adapters are.

    weights: of a model with adapters.
    """
    try:
        export_adapter(weights, config, lora, workspace.path / ADAPTER, base)
    except Unsupported:
        return {}
    return workspace.publish([f"{ADAPTER}/{name}" for name in FILES])
