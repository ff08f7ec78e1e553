"""Configuration of `manta import`."""

from typing import Annotated

import tyro

from pipelines.stage_config import Frozen


class ImportConfig(Frozen):
    """Make a model of a Hugging Face directory: GPT-2, Llama, Mistral, Mixtral, Qwen3, T5 or BERT."""

    directory: Annotated[str, tyro.conf.Positional]
    """Folder with config.json, weights (safetensors or pytorch_model.bin), and the tokenizer's files."""
    name: str
    """Name of the model to make: models/NAME/VERSION under the root."""
    root: str = "runs/default"
    """Where artifacts live: a folder, or s3://BUCKET/PREFIX."""
    force: bool = False
    """Make the artifact again even if this version exists."""
