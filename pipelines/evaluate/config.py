"""Configuration of `manta evaluate`."""

from typing import Literal

from pydantic import Field

from pipelines.stage_config import How, Later, StageConfig


class EvaluateConfig(StageConfig):
    """Measure a model on held-out data: bits per byte of text (--tokens), what a *simulated* reviewer says of
    its answers (--corpus), or both.

    With a baseline, both models answer the same prompts with the same seeds, and the win rate is counted.

    Of an encoder-decoder or an encoder, --tokens gives the loss on what is hidden of text, as in its
    pre-training. An encoder-decoder's answers, greedy, are compared with those of the corpus: exact match and
    BLEU.
    """

    model: How[str] = "aligned"
    """Language model to measure: NAME or NAME/VERSION. To answer prompts it should be a chat model."""
    baseline: How[str | None] = None
    """Model to compare it with."""
    corpus: How[str | None] = None
    """Conversation corpus whose held-out split gives the prompts; left out, none are answered."""
    tokens: How[str | None] = None
    """Tokens whose held-out split gives bits per byte, or the loss; left out, there are none."""
    windows: int = Field(default=256, gt=0)
    """Windows of the held-out tokens that are scored, evenly spaced."""
    prompts: int = Field(default=400, gt=0)
    """Most prompts to answer."""
    max_prompt_tokens: int = Field(default=128, gt=0)
    """Longer prompts are passed over."""
    max_tokens: int = Field(default=96, gt=0)
    """Tokens after which a response is cut off."""
    temperature: float = Field(default=0.8, ge=0)
    """Of the sampling; 0 takes the likeliest token. An encoder-decoder always does."""
    bleu_tokenizer: Later[Literal["13a", "intl", "char", "zh", "none"]] = "13a"
    """How BLEU cuts text into words: sacrebleu's names."""
    seed: int = Field(default=0, ge=0)
    """Decides prompts and samples. Another seed than in training shows that the result is no accident of
    one.
    """
    engines: How[int] = Field(default=1, gt=0)
    """Processes that generate, for one model after the other."""
    max_batch: How[int] = Field(default=128, gt=0)
    """Responses that one engine generates at a time."""
    threads: How[int | None] = Field(default=None, gt=0)
    """CPU threads of each engine; by default an equal share of the cluster's CPUs."""
