"""How a model was pre-trained, however it was changed since, and what it is asked of held-out text for that.

It needs no torch, so that a finished evaluation says at once that it is done.
"""

import json
from dataclasses import dataclass
from typing import Any

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.models.config import Family
from llm.tokenizer.special import ADDED_PIECES
from pipelines.check_model import check_context, family_of
from pipelines.model_folder import CONFIG
from pipelines.objective_options import ObjectiveOptions
from pipelines.token_shards import ranged_shards

_BEFORE = ("base", "model")
"""Role of the model that a stage changes: of fine-tuning, and of the others."""


def pre_training(store: ArtifactStore, model: Artifact) -> dict[str, Any]:
    """What was asked for when the model, or the one that it was made from, was pre-trained; nothing if that
    one is not under the root any more, or never was.
    """
    while model.manifest["stage"] != "pretrain":
        inputs = model.manifest["inputs"]
        changed = [inputs[role]["ref"] for role in _BEFORE if role in inputs]
        try:
            model = store.resolve("models", changed[0])
        except (IndexError, UserError):
            return {}
    what: dict[str, Any] = model.manifest["what"]
    return what


@dataclass(frozen=True)
class Question:
    """What is hidden of held-out text, for an encoder-decoder or an encoder to fill in."""

    family: Family
    seq_len: int
    """As of pre-training."""
    options: ObjectiveOptions

    @property
    def window(self) -> int:
        """Tokens of text that are looked at together."""
        return self.options.window(self.family, self.seq_len)


def question_for(store: ArtifactStore, model: Artifact) -> Question:
    """That of the model's own pre-training, else the usual one, over as many tokens as the model takes."""
    what = pre_training(store, model)
    seq_len = what.get("seq_len") or json.loads(model.read(CONFIG))["max_seq_len"]
    return Question(family_of(model), seq_len, ObjectiveOptions(**what.get("objective", {})))


def check_question(question: Question, models: dict[str, Artifact], tokens: Artifact) -> None:
    """Raise UserError if one of the models cannot be asked, or no held-out text is long enough."""
    shards = ranged_shards(tokens, "heldout")
    longest = max(shards.shard_tokens, default=0)
    if longest < question.window:
        raise UserError(
            f"{tokens.ref}: no shard of its held-out text has {question.window} tokens, as many as "
            f"{models['model'].ref} was trained on at a time; hold out more"
        )
    for model in models.values():
        check_context(model, question.seq_len, f"the length that {models['model'].ref} was pre-trained with")
        ids, more = json.loads(model.read(CONFIG))["vocab_size"], len(ADDED_PIECES[question.family])
        if ids != shards.vocab_size + more:
            raise UserError(
                f"{model.ref} has {ids} ids, and not the {shards.vocab_size} of {tokens.ref} and {more} more "
                "to mark what is hidden; name a model of `manta pretrain`, or one made from it"
            )
