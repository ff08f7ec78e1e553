"""Requests for responses whose tokens depend on nothing but the seed, the prompt and the weights."""

import json

from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError
from llm.engine.request import Request, SamplingParams
from llm.tokenizer.special import END_ID
from pipelines.prompts import Prompt, sample_seed


def chat_request(prompt: Prompt, sample: int, *, max_tokens: int, temperature: float, seed: int) -> Request:
    """Ask for response number `sample` to `prompt`; the end token ends it."""
    return Request(
        id=f"{prompt.id}-{sample}",
        prompt_ids=prompt.token_ids,
        params=SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=sample_seed(seed, prompt.id, sample),
            stop_token_ids=(END_ID,),
        ),
    )


def check_context(model: Artifact, tokens: int) -> None:
    """Raise UserError if the model was not trained with `tokens` of prompt and response together."""
    longest = json.loads((model.path / "config.json").read_bytes())["max_seq_len"]
    if tokens > longest:
        raise UserError(
            f"max_prompt_tokens + max_tokens is {tokens}, but {model.ref} was trained with {longest} tokens; "
            "lower one of them"
        )
