"""What every stage that makes a language model puts into its artifact, and what there is no part of the
result.
"""

import shutil
from pathlib import Path

from llm.models.config import ModelConfig
from llm.models.load import save_config

TOKENIZER = "tokenizer.model"
NOT_THE_RESULT = ("checkpoints", "metrics.jsonl", "timing.jsonl", "wandb", "ray_train")
"""Depends on how a model was trained, or when: left out of the manifest."""


def prepare_model_folder(folder: Path, config: ModelConfig, tokenizer_folder: Path) -> None:
    """Write config.json and copy the tokenizer, so that even an unfinished model says what it is."""
    save_config(folder, config)
    shutil.copyfile(tokenizer_folder / TOKENIZER, folder / TOKENIZER)
