"""Answers of one model to held-out prompts, as the simulated reviewer sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.artifacts.manifest import Artifact
from cluster.connect import Cluster
from llm.evaluation.python_grade import Grade
from llm.tokenizer.load import load_tokenizer
from pipelines.actors.engine_pool import EnginePool
from pipelines.evaluate.config import EvaluateConfig
from pipelines.model_folder import TOKENIZER
from pipelines.prompts import Prompt
from pipelines.sampling import chat_request
from pipelines.simulated_reviewer import grade_response


@dataclass(frozen=True)
class Answer:
    """One response and its grade."""

    text: str
    tokens: int
    grade: Grade


def answers_of(
    model: Artifact, prompts: Sequence[Prompt], config: EvaluateConfig, cluster: Cluster
) -> list[Answer]:
    """One answer a prompt, in their order. The seed is the prompt's: two models get the same."""
    requests = [
        chat_request(
            prompt, 0, max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed
        )
        for prompt in prompts
    ]
    share = -(-len(requests) // config.engines)
    batches = [requests[start : start + share] for start in range(0, len(requests), share)]
    with EnginePool(
        len(batches),
        model,
        share=cluster.share(len(batches)),
        max_batch=config.max_batch,
        max_seq_len=config.max_prompt_tokens + config.max_tokens,
        threads=config.threads,
    ) as engines:
        finished = dict(engines.generate(batches))
    completions = [completion for index in range(len(batches)) for completion in finished[index]]

    tokenizer = load_tokenizer(model.fetch(TOKENIZER))
    answers = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = tokenizer.decode(completion.response_ids)
        grade = grade_response(prompt.text, text, completion.finish_reason == "stop")
        answers.append(Answer(text, len(completion.response_ids), grade))
    return answers
