"""The engine: add requests, call step() until there is no more work.

    step = schedule ──► run the model ──► sample ──► collect

It belongs to one thread; `loop.py` gives it one and makes it answer to many.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.engine.kv_cache import KVCache, StepAttention
from llm.engine.request import Output, Request, RequestError
from llm.engine.sampler import sample, top_logprobs
from llm.engine.scheduler import Chunk, Scheduler
from llm.engine.sequence import Sequence
from llm.models.attention import Attend, Scoring
from llm.models.decoder import Decoder


class Engine:
    """Continuous batching over `max_batch` slots of `max_seq_len` tokens.

    Under greedy sampling in fp32 the tokens are those of a full recomputation of every sequence by itself,
    wherever the two best logits differ by more than rounding.

    Args:
        model: the weights; the engine takes it over, moving it to `device` and `dtype`.
        max_batch: most sequences generated at once. More wait.
        max_seq_len: most tokens of prompt and response; the model's own limit by default.
        step_tokens: tokens run per step, decodes first, the rest prefill; bounds how long a step takes.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        max_batch: int = 32,
        max_seq_len: int | None = None,
        step_tokens: int = 1024,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config = model.config
        self.max_seq_len = max_seq_len or config.max_seq_len
        if self.max_seq_len > config.max_seq_len:
            raise ValueError(
                f"max_seq_len={self.max_seq_len} is beyond the {config.max_seq_len} the model was made for"
            )
        if step_tokens <= max_batch:
            raise ValueError(
                f"step_tokens={step_tokens} must exceed max_batch={max_batch}, or prefill starves"
            )
        self.device = torch.device(device)
        self.vocab_size = config.vocab_size
        self.model = model.to(self.device, dtype).eval()
        self.cache = KVCache(config, max_batch, self.max_seq_len, self.device, dtype)
        self.scheduler = Scheduler(max_batch, step_tokens)
        self.sequences: dict[str, Sequence] = {}
        self.paused = False
        self.weights_version = 0
        self.generated_tokens = 0
        """Since the engine was made."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError, naming the limit, if it could never run."""
        self.check(request)
        if request.id in self.sequences:
            raise RequestError(f"a request with id {request.id!r} is already in the engine")
        sequence = Sequence(request)
        self.sequences[request.id] = sequence
        self.scheduler.waiting.append(sequence)

    def check(self, request: Request) -> None:
        """Raise RequestError if the request could never run."""
        length, wanted = len(request.prompt_ids), request.params.max_tokens
        if not length:
            raise RequestError("the prompt is empty; it needs at least one token")
        if length + wanted > self.max_seq_len:
            raise RequestError(
                f"the prompt's {length} tokens and max_tokens={wanted} exceed the {self.max_seq_len} there "
                f"is room for: shorten the prompt, or ask for at most {max(0, self.max_seq_len - length)}"
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self.vocab_size:
            raise RequestError(f"the prompt has a token id outside 0 … {self.vocab_size - 1}")

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its slot at once. False if it is not (or no longer) in the engine."""
        sequence = self.sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self.scheduler.running:
            self._release(self.scheduler.running.index(sequence))
        else:
            self.scheduler.waiting.remove(sequence)
        return True

    def pause(self) -> None:
        """Make step() do nothing; requests stay where they are."""
        self.paused = True

    def resume(self) -> None:
        """Undo pause()."""
        self.paused = False

    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.sequences)

    @torch.no_grad()
    def update_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Swap the weights between two steps; all or nothing.

        Requests under way keep their tokens, and their keys and values, which belong to the old weights, are
        computed again. Raises ValueError, with the old weights in place, if names or shapes differ.
        """
        parameters = dict(self.model.named_parameters())
        ours = {name: tuple(p.shape) for name, p in parameters.items()}
        theirs = {name: tuple(t.shape) for name, t in state.items()}
        if ours != theirs:
            differ = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
            raise ValueError(f"the new weights do not fit the model; they differ in {', '.join(differ[:5])}")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
        self.weights_version = version
        self.scheduler.requeue_running()

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one batch; returns what it added to each request that got a token or finished."""
        if self.paused or not self.sequences:
            return []
        decoding, chunks = self.scheduler.schedule()
        decoded = self.scheduler.running[:decoding]
        ready = decoded + [chunk.sequence for chunk in chunks if chunk.completes]
        logits = self._run(decoded, chunks)
        _score_prompts(chunks, logits[len(ready) :])
        outputs = self._sample(ready, logits[: len(ready)])
        self._retire()
        return outputs

    def _run(self, decoded: list[Sequence], chunks: list[Chunk]) -> Tensor:
        """fp32 logits (rows, vocab_size): a row per sequence that is ready to sample, then rows to score."""
        tokens = [sequence.tokens[-1] for sequence in decoded]
        positions = [sequence.computed for sequence in decoded]
        sampled = list(range(len(decoded)))
        scored: list[int] = []
        for chunk in chunks:
            offset, end = len(tokens), chunk.start + chunk.count
            tokens.extend(chunk.sequence.tokens[chunk.start : end])
            positions.extend(range(chunk.start, end))
            scored.extend(range(offset, offset + len(chunk.targets)))
            if chunk.completes:
                sampled.append(len(tokens) - 1)
        position = torch.tensor(positions, device=self.device)

        def pattern(scoring: Scoring) -> Attend:
            return StepAttention(self.cache, position[: len(decoded)], chunks, scoring)

        rows = torch.tensor(sampled + scored, dtype=torch.int64, device=self.device)
        logits = self.model(
            torch.tensor(tokens, device=self.device).unsqueeze(0),
            position.unsqueeze(0),
            pattern,
            readout=lambda hidden, weight, bias: F.linear(hidden[0, rows], weight, bias),
        )
        for sequence in decoded:
            sequence.computed += 1
        for chunk in chunks:
            chunk.sequence.computed += chunk.count
        return logits[:, : self.vocab_size].float()

    def _sample(self, ready: list[Sequence], logits: Tensor) -> list[Output]:
        """Append a token to each ready sequence and report it."""
        if not ready:
            return []
        tokens, logprobs = sample(logits, [s.params for s in ready], [len(s.tokens) for s in ready])
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        counts = [s.params.logprobs for s in ready]
        tops = top_logprobs(logprobs, counts) if any(counts) else [[]] * len(ready)
        outputs = []
        for sequence, token, logprob, top in zip(ready, tokens.tolist(), chosen, tops, strict=True):
            first = sequence.generated == 0
            output = Output(sequence.request.id, [], [], weights_version=self.weights_version)
            if sequence.params.max_tokens == 0:
                sequence.finish_reason = "length"
            else:
                sequence.append(token)
                self.generated_tokens += 1
                output.token_ids.append(token)
                output.logprobs.append(logprob)
                if sequence.params.logprobs:
                    output.top_logprobs.append(top)
            if first and sequence.params.prompt_logprobs:
                output.prompt_logprobs, output.prompt_top_logprobs = (
                    sequence.prompt_logprobs,
                    sequence.prompt_top,
                )
            output.finish_reason = sequence.finish_reason
            outputs.append(output)
        return outputs

    def _retire(self) -> None:
        """Free the slots of finished sequences, highest first so that the lower indices stay true."""
        running = self.scheduler.running
        for slot in range(len(running) - 1, -1, -1):
            if running[slot].finish_reason is not None:
                del self.sequences[running[slot].request.id]
                self._release(slot)

    def _release(self, slot: int) -> None:
        for source, target, length in self.scheduler.release(slot):
            self.cache.move(source, target, length)


def _score_prompts(chunks: list[Chunk], logits: Tensor) -> None:
    """Record log p(token | before it) for the prompt tokens that were asked for; logits in chunk order."""
    for chunk in chunks:
        targets, sequence = chunk.targets, chunk.sequence
        if not targets:
            continue
        logprobs = torch.log_softmax(logits[: len(targets)], -1)
        chosen = torch.tensor(targets, device=logits.device).unsqueeze(1)
        sequence.prompt_logprobs[chunk.start :] = logprobs.gather(1, chosen).squeeze(1).tolist()
        if sequence.params.logprobs:
            counts = [sequence.params.logprobs] * len(targets)
            sequence.prompt_top[chunk.start :] = top_logprobs(logprobs, counts)
        logits = logits[len(targets) :]
