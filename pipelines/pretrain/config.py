"""Configuration of pre-training."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from llm.models.config import Family, ModelConfig
from llm.tokenizer.special import SENTINELS
from llm.training.recipe import Recipe
from pipelines.model_options import ModelOptions
from pipelines.objective_options import ObjectiveOptions
from pipelines.parallel_config import ParallelTrainingConfig
from pipelines.pretrain.mixture import TokensChoice, parse_tokens
from pipelines.stage_config import How, Later

if TYPE_CHECKING:
    from llm.data.span_corruption import SpanCorruption


_OBJECTIVE_OPTIONS: dict[Family, tuple[str, ...]] = {
    "decoder": (),
    "encoder-decoder": ("noise_density", "mean_span_length"),
    "encoder": ("mask_rate",),
}
"""Those that a family reads."""


class PretrainConfig(ParallelTrainingConfig):
    """Train a language model from scratch on token shards."""

    tokens: How[str] = "default"
    """Token shards to learn from: NAME or NAME/VERSION under tokens/. Several are mixed by weights,
    web=7,code=3, which may change after so many tokens: "web=7,code=3; 2e9: web=5,code=3,math=2".
    """
    copy_tokens_up_to: How[int] = Field(default=50 * 2**30, ge=0)
    """Bytes of tokens artifacts in object storage that are copied to each node's disk, and checked, before
    training. Of larger ones each worker reads its share over the network, a sample at a time and ahead.
    """
    model: ModelOptions = ModelOptions()
    steps: int = Field(default=1000, gt=0)
    """Optimizer steps."""
    seq_len: int = Field(default=256, gt=1)
    """Tokens in one training sequence; of an encoder-decoder, those that the encoder reads. The text that it
    is made from is longer then, by what the decoder has to fill in.
    """
    objective: ObjectiveOptions = ObjectiveOptions()
    document_mask: Later[bool] = False
    """Let the documents of a sequence not see each other, and count positions anew in each (Zhao et al. 2024,
    arXiv:2402.13991). Attention then has a mask, which costs time. Decoders only.
    """
    extends: How[str | None] = None
    """Finished pre-trained model to train on, up to --steps in all: NAME or NAME/VERSION. Optimizer state and
    order of the data go on where it stopped; the learning rate follows the schedule of the new length from
    there. Tokens, model, sequence length, batch, seed and precision must be the same; --steps must be more,
    and --optimizer options may differ.
    """
    evaluate_windows: How[int] = Field(default=32, gt=0)
    """Held-out sequences scored at each evaluation during training; at the end all are."""
    evaluate_beside: How[bool] = False
    """Evaluate checkpoints instead, in a process beside the workers, which do not wait for it: on a GPU that
    is left over, else on CPUs. Of several new ones it takes the newest; what comes of it is in
    evaluations.jsonl. The cadence is that of --checkpoint-every.
    """

    def what(self) -> dict[str, Any]:
        """With the model's shape, in place of a name that may mean another shape one day.

        What stands at its default is left out: a field that is added one day then changes no version.
        """
        what = super().what() | {"model": self.model.what()} | self.sources.what()
        what |= self.moving(self.model.shape(vocab_size=1))
        objective = what.pop("objective")
        read = _OBJECTIVE_OPTIONS[self.family]
        return what | ({"objective": {name: objective[name] for name in read}} if read else {})

    @property
    def family(self) -> Family:
        """Of the model: it says what is learned (`llm.training.objectives`)."""
        return self.model.family

    def trained_shape(self, text_ids: int) -> ModelConfig:
        """The model's configuration with the `text_ids` pieces of a tokenizer and what its family adds."""
        return self.model.trained_shape(text_ids)

    @property
    def corruption(self) -> "SpanCorruption":
        """What an encoder-decoder learns from."""
        return self.objective.corruption

    @property
    def window(self) -> int:
        """Tokens of text that one training sequence is made from: a sample of the stream."""
        return self.objective.window(self.family, self.seq_len)

    @property
    def sources(self) -> TokensChoice:
        """What `tokens` says."""
        return parse_tokens(self.tokens)

    @model_validator(mode="after")
    def _numbers_fit_the_model(self) -> Self:
        shape = self.model.shape(vocab_size=1)
        if shape.tie_embeddings and self.optimizer.head_scale != 1:
            raise ValueError(
                f"optimizer.head_scale={self.optimizer.head_scale}: the head of {self.model.preset} is its "
                "embedding table; use optimizer.embedding_scale"
            )
        longest = shape.max_seq_len
        if self.seq_len > longest:
            raise ValueError(
                f"seq_len={self.seq_len} is longer than the model's max_seq_len={longest}: "
                "shorten it or raise --model.max-seq-len"
            )
        return self

    def recipe(self, steps: int) -> Recipe:
        recipe = super().recipe(steps)
        return replace(recipe, evaluate_every=0) if self.evaluate_beside else recipe

    @model_validator(mode="after")
    def _evaluations_are_at_one_cadence(self) -> Self:
        if self.evaluate_beside and self.evaluate_every != type(self).model_fields["evaluate_every"].default:
            raise ValueError(
                f"evaluate_every={self.evaluate_every}: with evaluate_beside it is checkpoints that are "
                "evaluated; leave it out, and say how often by checkpoint_every"
            )
        return self

    @model_validator(mode="after")
    def _objective_is_the_familys(self) -> Self:
        family, preset = self.family, self.model.preset
        for reader, names in _OBJECTIVE_OPTIONS.items():
            for name in names:
                value = getattr(self.objective, name)
                if reader != family and value != getattr(ObjectiveOptions(), name):
                    raise ValueError(f"objective.{name}={value} is for an {reader}, and {preset} is none")
        if self.document_mask and family != "decoder":
            raise ValueError(f"document_mask keeps documents apart in a decoder, and {preset} is none")
        if family == "encoder-decoder":
            self._check_spans()
        if family == "encoder" and round(self.objective.mask_rate * self.seq_len) == 0:
            raise ValueError(
                f"seq_len={self.seq_len} with objective.mask_rate={self.objective.mask_rate} masks no token: "
                "raise either"
            )
        return self

    @model_validator(mode="after")
    def _workers_can_divide_it(self) -> Self:
        reads = self.family == "encoder-decoder" and self.parallel.row_multiple > 1
        row = self.corruption.lengths(self.window)[0] if reads else self.seq_len
        try:
            self.check_parallel(self.model.shape(vocab_size=1), row)
        except ValueError as error:
            if row == self.seq_len:
                raise
            told = f"of seq_len={self.seq_len} an encoder reads {row} tokens with this objective"
            raise ValueError(f"{error} ({told})") from None
        return self

    def _check_spans(self) -> None:
        if self.seq_len < 3:
            raise ValueError(f"seq_len={self.seq_len}: the shortest text with a hole takes 3 tokens")
        spans, (_, target_len) = self.corruption.sentinels(self.window), self.corruption.lengths(self.window)
        if spans > SENTINELS:
            raise ValueError(
                f"seq_len={self.seq_len} with objective.noise_density={self.objective.noise_density} leaves "
                f"out {spans} spans, and there are {SENTINELS} sentinels to mark them; "
                "shorten it, or raise objective.mean_span_length"
            )
        longest = self.model.shape(vocab_size=1).max_seq_len
        if target_len > longest:
            raise ValueError(
                f"objective.noise_density={self.objective.noise_density} gives the decoder {target_len} "
                f"tokens, more than the model's max_seq_len={longest}: lower it or raise --model.max-seq-len"
            )

    @model_validator(mode="after")
    def _tokens_are_a_mixture(self) -> Self:
        if self.sources.stages:
            try:
                self.sources.mixture(self.window)
            except ValueError as error:
                raise ValueError(f"tokens: {error}") from None
        return self
