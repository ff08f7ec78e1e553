"""Run a list of requests to their ends."""

from collections.abc import Sequence as Many

from llm.engine.engine import Engine
from llm.engine.request import Completion, Request


def generate(engine: Engine, requests: Many[Request]) -> list[Completion]:
    """Completions in the order of the requests. All are checked before the first one runs."""
    for request in requests:
        engine.check(request)
    completions = {
        request.id: Completion(request.id, list(request.prompt_ids), [], [], "abort", engine.weights_version)
        for request in requests
    }
    for request in requests:
        engine.add(request)
    unfinished = len(requests)
    while unfinished:
        for output in engine.step():
            completion = completions[output.id]
            completion.response_ids += output.token_ids
            completion.logprobs += output.logprobs
            completion.top_logprobs += output.top_logprobs
            if output.prompt_logprobs is not None:
                completion.prompt_logprobs = output.prompt_logprobs
                completion.prompt_top_logprobs = output.prompt_top_logprobs
            if output.finish_reason is not None:
                completion.finish_reason = output.finish_reason
                unfinished -= 1
    return [completions[request.id] for request in requests]
