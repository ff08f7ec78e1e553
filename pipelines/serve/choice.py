"""One choice on its way to a client: engine outputs in, text and scored tokens out."""

import itertools
from dataclasses import dataclass, field

from llm.engine.request import Output, TopLogprobs
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.serve.detokenizer import Detokenizer, StopStrings
from pipelines.serve.protocol import FinishReason


@dataclass(slots=True)
class ScoredToken:
    """A token of the text, where it starts in the text, and how likely it was (unknown for the first)."""

    id: int
    logprob: float | None
    top: TopLogprobs
    offset: int


@dataclass(slots=True)
class Delta:
    """What is new about a choice since its last delta."""

    index: int
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: FinishReason = None


class Choice:
    """Detokenises, looks for stop strings, and pairs tokens with text.

    A token is reported with the text it begins, once that text can be shown; the tokens that make up a stop
    string are not.

    Args:
        echo_ids: a prompt to put in front of the text, for the older API's `echo`.
        strip_space: whether the tokenizer puts a space before a text that has none.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: list[str],
        *,
        echo_ids: list[int] | None = None,
        strip_space: bool = False,
    ) -> None:
        self.index = index
        self.completion_tokens = 0
        self.finish_reason: FinishReason = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        self._echo_ids = echo_ids
        self._strip_space = strip_space
        self._decoded = 0  # characters so far, shown or held back
        self._shown = 0
        self._unshown: list[ScoredToken] = []

    def push(self, output: Output) -> Delta:
        """What this output adds. When `finish_reason` is set the choice is complete."""
        delta = Delta(self.index)
        if self._echo_ids is not None:
            self._echo(delta, output, self._echo_ids)
            self._echo_ids = None
        final = output.finish_reason is not None
        tops = output.top_logprobs or [[]] * len(output.token_ids)
        for token, logprob, top in zip(output.token_ids, output.logprobs, tops, strict=True):
            self._unshown.append(ScoredToken(token, logprob, top, self._decoded))
            delta.text += self._show(self._detokenizer.push([token]))
        delta.text += self._show(self._detokenizer.push([], final), final)
        self.completion_tokens += len(output.token_ids)
        if self._stops.found:
            self.finish_reason = "stop"
        elif final:
            self.finish_reason = "length" if output.finish_reason == "length" else "stop"
        self._report_tokens(delta)
        delta.finish_reason = self.finish_reason
        return delta

    def _show(self, text: str, final: bool = False) -> str:
        if self._strip_space and text:
            text, self._strip_space = text.removeprefix(" "), False
        self._decoded += len(text)
        shown = self._stops.push(text, final)
        self._shown += len(shown)
        return shown

    def _report_tokens(self, delta: Delta) -> None:
        complete = self.finish_reason is not None and not self._stops.found
        ready = 0
        while ready < len(self._unshown) and (complete or self._unshown[ready].offset < self._shown):
            ready += 1
        delta.tokens += self._unshown[:ready]
        del self._unshown[:ready]

    def _echo(self, delta: Delta, output: Output, ids: list[int]) -> None:
        # The engine scores every token but its first, which the echo may or may not have left out.
        known, known_tops = output.prompt_logprobs or [], output.prompt_top_logprobs or []
        scores: list[float | None] = [*itertools.repeat(None, len(ids) - len(known)), *known]
        tops = [*itertools.repeat([], len(ids) - len(known_tops)), *known_tops]
        detokenizer = Detokenizer(self._tokenizer)
        for token, score, top in zip(ids, scores, tops, strict=True):
            delta.tokens.append(ScoredToken(token, score, top, len(delta.text)))
            delta.text += detokenizer.push([token])
        delta.text += detokenizer.push([], final=True)
        self._decoded = self._shown = len(delta.text)
