"""Configuration of `manta preferences`."""

from typing import Literal

from pydantic import Field

from pipelines.stage_config import How, StageConfig


class PreferencesConfig(StageConfig):
    """Sample several responses to each prompt from a chat model and let a *simulated* reviewer rank them."""

    model: How[str] = "chat"
    """Chat model that answers: NAME or NAME/VERSION."""
    corpus: How[str] = "chat"
    """Conversation corpus whose training split gives the prompts."""
    prompts: int = Field(default=512, gt=0)
    """Prompts to answer; chosen by a hash of their id."""
    responses: int = Field(default=4, ge=2)
    """Responses to each prompt."""
    max_prompt_tokens: int = Field(default=128, gt=0)
    """Longer prompts are passed over."""
    max_tokens: int = Field(default=96, gt=0)
    """Tokens after which a response is cut off."""
    temperature: float = Field(default=0.8, gt=0)
    """Of the sampling; below 1 the responses are more alike."""
    reviewer: Literal["simulated-python"] = "simulated-python"
    """Who ranks. Only simulated reviewers so far: "simulated-python" reads the syntax of Python function
    bodies.
    """
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the simulated reviewer's mistakes, in grades (which are between 0 and 1)."""
    heldout_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the prompts' groups (source files, say) kept from the reward model to test it on."""
    seed: int = Field(default=0, ge=0)
    """Decides prompts, responses, noise and the split."""
    engines: How[int] = Field(default=1, gt=0)
    """Processes that generate."""
    max_batch: How[int] = Field(default=128, gt=0)
    """Responses that one engine generates at a time."""
    threads: How[int | None] = Field(default=None, gt=0)
    """CPU threads of each engine; by default an equal share of the cluster's CPUs."""
