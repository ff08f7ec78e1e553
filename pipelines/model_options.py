"""The shape of a new model, as pre-training and fine-tuning are told it."""

from typing import Any

from pydantic import Field, ValidationError

from llm.models.config import Activation, Family, ModelConfig, Norm, NormPlacement, Position, Scaling
from llm.models.presets import PRESETS, model_config
from llm.tokenizer.special import ADDED_PIECES
from pipelines.stage_config import Frozen

_YARN_TURNS = {"low_frequency": 1.0, "high_frequency": 32.0}
"""Of the paper, where llama3's are the defaults of `RopeScaling` (Peng et al., 2023, arXiv:2309.00071)."""


class RopeScalingOptions(Frozen):
    """How rotary frequencies are stretched for longer sequences; not at all without a kind."""

    kind: Scaling | None = None
    """Divide all frequencies (linear), or only the low ones, as Llama 3 or YaRN do."""
    factor: float | None = Field(default=None, ge=1)
    """How many times longer sequences become."""
    original_max_seq_len: int | None = Field(default=None, gt=0)
    """llama3, yarn: the longest sequence without scaling."""
    low_frequency: float | None = Field(default=None, gt=0)
    """llama3, yarn: turns within that length below which a frequency is divided by the factor; default: 1."""
    high_frequency: float | None = Field(default=None, gt=0)
    """And above which it is left as it is; default: 4, of yarn 32."""

    def fields(self, max_seq_len: int) -> dict[str, Any] | None:
        """Those of a `RopeScaling`, in a model for so many tokens; None without scaling. Raises ValueError
        where they are not those of the kind.
        """
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        if self.kind is None:
            if given:
                name, value = next(iter(given.items()))
                raise ValueError(
                    f"model.rope_scaling.{name}={value} needs a kind of scaling: give rope_scaling.kind too"
                )
            return None
        needed = ("factor",) if self.kind == "linear" else ("factor", "original_max_seq_len")
        for name in needed:
            if name not in given:
                raise ValueError(f"model.rope_scaling.kind={self.kind} needs rope_scaling.{name}")
        if self.kind == "linear":
            for name in given:
                if name != "factor":
                    raise ValueError(
                        f"model.rope_scaling.{name}={given[name]} is for llama3 and yarn; leave it out"
                    )
            given["original_max_seq_len"] = max_seq_len  # Not read; as imported models have it.
        turns = _YARN_TURNS if self.kind == "yarn" else {}
        return {"kind": self.kind} | turns | given


class ModelOptions(Frozen):
    """A preset and what to change in it."""

    preset: str = "quickstart-1m"
    """Named shape, such as quickstart-1m or llama-125m."""
    max_seq_len: int | None = Field(default=None, gt=0)
    """Longest sequence the model may be served with; default: the preset's."""
    d_model: int | None = Field(default=None, gt=0)
    """Width; default: the preset's."""
    n_layers: int | None = Field(default=None, gt=0)
    """Blocks, of an encoder-decoder the decoder's; default: the preset's."""
    n_encoder_layers: int | None = Field(default=None, gt=0)
    """Encoder-decoder: blocks of the encoder; default: the preset's."""
    n_heads: int | None = Field(default=None, gt=0)
    """Query heads; default: the preset's."""
    n_kv_heads: int | None = Field(default=None, gt=0)
    """Key/value heads; default: the preset's, or as many as query heads where it has as many."""
    head_dim: int | None = Field(default=None, gt=0)
    """Size of a head; default: the preset's, or d_model / n_heads where it has none of its own."""
    d_ff: int | None = Field(default=None, gt=0)
    """Width of the feed-forward layers, or of each expert; default: the preset's."""
    n_experts: int | None = Field(default=None, ge=0)
    """Decoder: experts of each block, 0 for none; default: the preset's."""
    experts_per_token: int | None = Field(default=None, ge=0)
    """How many of them a token goes through; default: the preset's."""
    position: Position | None = None
    """How the model knows where a token stands; default: the preset's way. An encoder-decoder takes neither
    learned nor alibi.
    """
    rope_theta: float | None = Field(default=None, gt=1)
    """Base of the rotary frequencies; default: the preset's."""
    rope_scaling: RopeScalingOptions = RopeScalingOptions()
    sliding_window: int | None = Field(default=None, gt=0)
    """Tokens that a token sees when it looks back, itself the last of them; default: all before it."""
    qk_norm: bool | None = None
    """Normalise queries and keys, head by head, before they meet; default: the preset's."""
    tie_embeddings: bool | None = None
    """Let the output head be the embedding table; default: the preset's."""
    norm: Norm | None = None
    """RMSNorm or LayerNorm; default: the preset's."""
    norm_placement: NormPlacement | None = None
    """Norms before each layer, or after each sum with the residual; default: the preset's."""
    activation: Activation | None = None
    """Of the feed-forward layers; default: the preset's."""
    gated: bool | None = None
    """Gate the feed-forward layers with a second matrix, as SwiGLU does; default: the preset's."""

    def shape(self, vocab_size: int) -> ModelConfig:
        """The model's configuration; raises ValueError if there is no such preset or the changes do not
        fit.
        """
        try:
            return model_config(self.preset, vocab_size, **self._changes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["model", *map(str, first["loc"])])
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None

    def _changes(self) -> dict[str, Any]:
        """What is other than in the preset, and what of the preset means nothing beside it."""
        preset = PRESETS[self.preset].shape if self.preset in PRESETS else {}
        changes: dict[str, Any] = self.model_dump(exclude={"preset", "rope_scaling"}, exclude_none=True)
        merged = preset | changes
        scaling = self.rope_scaling.fields(merged.get("max_seq_len", 0))
        if scaling is not None:
            changes["rope_scaling"] = scaling
        position = merged.get("position", "rope")
        if position != "rope" and self.rope_theta is not None:
            raise ValueError(
                f"model.rope_theta={self.rope_theta} is the base of rotary positions, and this has "
                f"position={position}: leave it out, or take position=rope"
            )
        if position != "rope" and "rope_theta" in preset:
            changes["rope_theta"] = ModelConfig.model_fields["rope_theta"].default
        if self.tie_embeddings is False and preset.get("scale_logits"):
            changes["scale_logits"] = False  # T5 does so because its head is the embedding table.
        if self.n_experts == 0:
            changes.setdefault("experts_per_token", 0)
        if self.qk_norm and preset.get("attention_scale") is not None:
            raise ValueError(
                f"model.qk_norm: {self.preset} does not divide scores by √head_dim, which normalised queries "
                "need; take a preset that does, such as transformer-base"
            )
        return changes

    def what(self) -> dict[str, Any]:
        """The shape itself, in place of a name that may mean another one day; without the vocabulary, which
        is the tokenizer's, and without defaults.
        """
        shape = self.shape(vocab_size=1).model_dump(mode="json", exclude_defaults=True)
        del shape["vocab_size"]
        return shape

    @property
    def family(self) -> Family:
        """Of the model."""
        return self.shape(vocab_size=1).family

    def trained_shape(self, text_ids: int) -> ModelConfig:
        """The model's configuration with the `text_ids` pieces of a tokenizer and what its family adds."""
        return self.shape(text_ids + len(ADDED_PIECES[self.family]))
