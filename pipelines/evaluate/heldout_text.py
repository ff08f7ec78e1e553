"""What a model makes of held-out text: a decoder's bits per byte, the others' loss on what is hidden."""

from typing import Any

import torch

from cluster.artifacts.manifest import Artifact
from cluster.connect import Cluster
from cluster.one_process import run_in_one_process
from llm.evaluation.bits_per_byte import bits_per_byte
from llm.evaluation.heldout_guesses import VIEWS_SEED, Guesses, guesses
from llm.models.decoder import Decoder
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.load import load_model
from llm.models.masked_lm import MaskedLM
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.pre_training import Question
from pipelines.progress import stage_progress
from pipelines.token_shards import copied_shards

WINDOWS_AT_A_TIME = 16


def heldout_bits_per_byte(
    model: Artifact, tokens: Artifact, windows: int, threads: int, documents_alone: bool
) -> float:
    """Of the model on `windows` windows of the held-out split, as long as the model takes."""
    torch.set_num_threads(threads)
    decoder, config = load_model(model.fetch())
    assert isinstance(decoder, Decoder)
    shards = copied_shards(tokens, "heldout")
    opening_id = shards.eos_id if documents_alone else None
    return bits_per_byte(decoder, shards, config.max_seq_len, WINDOWS_AT_A_TIME, windows, opening_id)


def measure_guesses(
    config: EvaluateConfig, inputs: dict[str, Artifact], question: Question, cluster: Cluster
) -> dict[str, Any]:
    """Ask each model the same question; returns what results.json says of it."""
    cluster.connect()
    measures: dict[str, Any] = {}
    prefixes = {"model": "", "baseline": "baseline_"}
    roles = [role for role in prefixes if role in inputs]
    with stage_progress("evaluate", len(roles), "model") as progress:
        progress.update(0)
        cpus = cluster.share(1, use_gpus=False).cpus
        for done, role in enumerate(roles, start=1):
            found: Guesses = run_in_one_process(
                heldout_guesses,
                inputs[role],
                inputs["tokens"],
                question,
                config.windows,
                config.threads or max(1, int(cpus)),
                cpus=cpus,
                what=f"{config.name}: held-out loss of {inputs[role].ref}",
                less_memory="run on a node with more memory",
            )
            measures[f"{prefixes[role]}heldout_loss"] = found.loss
            if question.family == "encoder":
                measures[f"{prefixes[role]}heldout_accuracy"] = found.accuracy
            progress.update(done)
    return measures


def heldout_guesses(
    model: Artifact, tokens: Artifact, question: Question, windows: int, threads: int
) -> Guesses:
    """Of the model on `windows` windows of the held-out split, as in its pre-training."""
    torch.set_num_threads(threads)
    guesser, _ = load_model(model.fetch())
    assert isinstance(guesser, EncoderDecoder | MaskedLM)
    shards = copied_shards(tokens, "heldout")
    views = question.options.of(question.family, shards.vocab_size, VIEWS_SEED)
    return guesses(guesser, shards, question.window, views, WINDOWS_AT_A_TIME, windows)
