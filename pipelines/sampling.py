"""Requests for responses whose tokens depend on nothing but the seed, the prompt and the weights."""

from collections.abc import Sequence

from llm.engine.request import Request, SamplingParams
from llm.tokenizer.special import END_ID
from pipelines.prompts import Prompt, sample_seed


def chat_requests(
    prompts: Sequence[Prompt], responses: int, *, max_tokens: int, temperature: float, seed: int
) -> list[Request]:
    """`responses` requests for each prompt, those of one prompt in a row; the end token ends a response."""
    return [
        Request(
            id=f"{prompt.id}-{sample}",
            prompt_ids=prompt.token_ids,
            params=SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=sample_seed(seed, prompt.id, sample),
                stop_token_ids=(END_ID,),
            ),
        )
        for prompt in prompts
        for sample in range(responses)
    ]
