"""What every stage that makes a language model puts into its artifact first."""

import json

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from llm.models.config import ModelConfig
from llm.models.load import Head, config_json
from pipelines.tokenizer_artifact import file_of, read_tokenizer, tokenizer_file

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
EXPORT = "export"
"""Folder with the model in Hugging Face's form."""
IMPORTED = "imported"
"""Folder with what an imported model keeps of its source: special ids, and a tokenizer that is not ours."""
GENERATION = "generation_config.json"
"""In either folder: the ids that begin, end and pad a text."""
BEGUN = "begun.json"
"""What a manifest says of how the model comes about; not among the artifact's files, for it has that then."""
LOGS = ("metrics.jsonl", "timing.jsonl")
"""How a model was trained, and when: beside the artifact's files, but not among them."""
EVALUATIONS = "evaluations.jsonl"
"""What its checkpoints make of held-out text, if that is measured beside the training: a log too."""


def prepare_model_folder(draft: Draft, config: ModelConfig, tokenizer: Artifact, head: Head = "lm") -> None:
    """Write config.json and copy the tokenizer, so that even an unfinished model says what it is."""
    draft.write(CONFIG, config_json(config, head))
    draft.write(file_of(tokenizer), read_tokenizer(tokenizer))
    draft.folder.write(BEGUN, json.dumps(draft.manifest, indent=2, sort_keys=True).encode() + b"\n")


def attachments(draft: Draft) -> dict[str, bytes]:
    """What each checkpoint carries besides the run's own state, so that it is a model by itself: of a draft
    with `prepare_model_folder`.
    """
    tokenizer = tokenizer_file(draft.files)
    assert tokenizer is not None
    return {name: draft.folder.read(name) for name in (CONFIG, tokenizer)}
