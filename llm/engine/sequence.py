"""A request on its way through the engine."""

from llm.engine.request import FinishReason, Request, TopLogprobs


class Sequence:
    """Tokens so far, and how many of them have their keys and values in the cache.

    Invariant between steps: 0 <= computed < len(tokens). A running sequence with one token uncomputed (the
    one just sampled) is decoding; one with more is in prefill.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.params = request.params
        self.tokens = list(request.prompt_ids)
        self.prompt_length = len(request.prompt_ids)
        self.computed = 0
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[float] = []
        self.prompt_top: list[TopLogprobs] = []

    @property
    def uncomputed(self) -> int:
        """Tokens still to be run through the model before the next can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.prompt_length

    def append(self, token: int) -> None:
        """Take a sampled token, and finish if it stops the request or was the last allowed."""
        self.tokens.append(token)
        if token in self.params.stop_token_ids:
            self.finish_reason = "stop"
        elif self.generated >= self.params.max_tokens:
            self.finish_reason = "length"
