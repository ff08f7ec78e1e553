"""From logits to tokens, for the whole batch at once, each row with its own parameters.

p = softmax(keep_top_p(keep_top_k(logits / temperature)))
token = first i with p_0 + … + p_i > u · Σp,   u = uniform(seed, position)
"""

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from llm.engine.request import SamplingParams, TopLogprobs
from llm.engine.uniform import uniform


def sample(logits: Tensor, params: Rows[SamplingParams], positions: Rows[int]) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of fp32 logits (rows, vocab); position is the new token's in its sequence.

    Returns tokens (rows,) int64 and log-probabilities (rows, vocab) of the distributions that were sampled
    from; for greedy rows, of the model's own.
    """
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=logits.device)
    greedy = temperature == 0
    if all(p.temperature == 0 for p in params):
        return logits.argmax(-1), torch.log_softmax(logits, -1)

    logprobs = torch.log_softmax(logits / temperature.where(~greedy, 1.0).unsqueeze(1), -1)
    filtered = [i for i, p in enumerate(params) if p.temperature > 0 and (p.top_k or p.top_p < 1)]
    if filtered:
        top_k = torch.tensor([params[i].top_k for i in filtered], device=logits.device)
        top_p = torch.tensor([params[i].top_p for i in filtered], device=logits.device)
        logprobs[filtered] = keep_top(logprobs[filtered], top_k, top_p)

    seeds = np.array([p.seed for p in params], dtype=np.uint64)
    draws = torch.from_numpy(uniform(seeds, np.array(positions, dtype=np.uint64))).to(logits.device)
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    # A token of probability 0 does not raise the sum, so it is never the first to exceed the target.
    tokens = torch.searchsorted(cumulative, (draws.unsqueeze(1) * cumulative[:, -1:]), right=True).squeeze(1)
    if greedy.any():
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens, logprobs


def keep_top(logprobs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Log-probabilities of the tokens kept by top-k, then top-p, renormalised; -inf for all others.

    logprobs (rows, vocab), top_k (rows,) with 0 for all, top_p (rows,). Top-p keeps the likeliest tokens up
    to and including the one whose cumulative probability (among those top-k kept) first reaches top_p. Among
    equal logits at the border the lower id stays.
    """
    ordered, ids = torch.sort(logprobs, dim=-1, descending=True, stable=True)
    rank = torch.arange(logprobs.shape[1], device=logprobs.device)
    ordered = ordered.masked_fill((rank >= top_k.unsqueeze(1)) & (top_k > 0).unsqueeze(1), -torch.inf)
    probabilities = torch.softmax(ordered, -1)
    before = probabilities.cumsum(-1) - probabilities
    drop = (before >= top_p.unsqueeze(1)) & (top_p < 1).unsqueeze(1)
    drop[:, 0] = False
    kept = torch.full_like(logprobs, -torch.inf).scatter_(1, ids, ordered.masked_fill(drop, -torch.inf))
    return torch.log_softmax(kept, -1)


def top_logprobs(logprobs: Tensor, counts: Rows[int]) -> list[TopLogprobs]:
    """The likeliest `counts[row]` tokens of each row (rows, vocab), best first; impossible ones left out."""
    most = min(max(counts), logprobs.shape[1])
    values, ids = logprobs.topk(most, dim=-1)
    rows = zip(ids.tolist(), values.tolist(), counts, strict=True)
    return [
        [(i, v) for i, v in zip(row_ids[:n], row_values[:n], strict=True) if v > -torch.inf]
        for row_ids, row_values, n in rows
    ]
