"""Requests for responses whose tokens depend on nothing but the seed, the prompt and the weights."""

from llm.engine.request import Request, SamplingParams
from llm.tokenizer.special import STOP_IDS
from pipelines.prompts import Prompt, sample_seed


def chat_request(prompt: Prompt, sample: int, *, max_tokens: int, temperature: float, seed: int) -> Request:
    """Ask for response number `sample` to `prompt`; it ends as a served one does."""
    return Request(
        id=f"{prompt.id}-{sample}",
        prompt_ids=prompt.token_ids,
        params=SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=sample_seed(seed, prompt.id, sample),
            stop_token_ids=STOP_IDS,
        ),
    )
