"""Answers of one model to held-out prompts, as the simulated reviewer sees them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.artifacts.manifest import Artifact
from cluster.connect import Cluster
from llm.evaluation.python_grade import Grade
from pipelines.actors.engine_pool import EnginePool
from pipelines.evaluate.config import EvaluateConfig
from pipelines.prompts import Prompt
from pipelines.sampling import chat_request
from pipelines.simulated_reviewer import grade_response
from pipelines.tokenizer_artifact import load_tokenizer


@dataclass(frozen=True)
class Answer:
    """One response and its grade."""

    text: str
    tokens: int
    grade: Grade


def answers_of(
    model: Artifact,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    cluster: Cluster,
    answered: Callable[[int, int], None],
) -> list[Answer]:
    """One answer a prompt, in their order. The seed is the prompt's: two models get the same.

    answered: is told of more and more (prompts, tokens of their answers).
    """
    requests = [
        chat_request(
            prompt, 0, max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed
        )
        for prompt in prompts
    ]
    # An engine works best on many requests at once, and is heard of when it has finished a batch of them.
    share = min(-(-len(requests) // config.engines), 4 * config.max_batch)
    batches = [requests[start : start + share] for start in range(0, len(requests), share)]
    count = min(config.engines, len(batches))
    with EnginePool(
        count,
        model,
        share=cluster.share(count),
        max_batch=config.max_batch,
        max_seq_len=config.max_prompt_tokens + config.max_tokens,
        threads=config.threads,
    ) as engines:
        finished = {}
        for index, completions in engines.generate(batches):
            finished[index] = completions
            answered(len(completions), sum(len(each.response_ids) for each in completions))
    in_order = [completion for index in range(len(batches)) for completion in finished[index]]

    tokenizer = load_tokenizer(model)
    answers = []
    for prompt, completion in zip(prompts, in_order, strict=True):
        text = tokenizer.decode(completion.response_ids)
        grade = grade_response(prompt.text, text, completion.finish_reason == "stop")
        answers.append(Answer(text, len(completion.response_ids), grade))
    return answers
