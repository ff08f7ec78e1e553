"""The final weights of a language model, in our form and in Hugging Face's."""

from torch import Tensor

from cluster.artifacts.folder import FileEntry
from cluster.artifacts.workspace import Workspace
from llm.models.config import ModelConfig
from llm.models.hugging_face import export_llama
from llm.models.load import save_model
from pipelines.model_folder import TOKENIZER, WEIGHTS

EXPORT = "export"


def write_language_model(
    workspace: Workspace,
    weights: dict[str, Tensor],
    config: ModelConfig,
    tokenizer_model: bytes,
    special_ids: dict[str, int],
) -> dict[str, FileEntry]:
    """Write weights.safetensors, and export/ where it can be made; returns what the manifest says of them."""
    path = workspace.path
    save_model(path, weights, config)
    (path / TOKENIZER).write_bytes(tokenizer_model)
    if _is_llama(config):
        export_llama(
            weights, config, path / EXPORT, tokenizer_model=path / TOKENIZER, special_ids=special_ids
        )
    exported = sorted(
        each.relative_to(path).as_posix() for each in (path / EXPORT).rglob("*") if each.is_file()
    )
    return workspace.publish([WEIGHTS, *exported])


def _is_llama(config: ModelConfig) -> bool:
    """Whether the model is of the shape that export/ can be made of."""
    shape = (config.family, config.position, config.norm, config.gated, config.bias)
    return shape == ("decoder", "rope", "rms", True, False)
