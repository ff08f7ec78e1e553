"""Attention against its formula in float64, with every mask and bias that a model may have."""

import math

import pytest
import torch

from llm.models.attention import Scoring, bidirectional, causal, masked
from llm.models.decoder import Decoder
from llm.models.documents import seeing_own_document
from llm.models.presets import model_config

SEQ = 13


def by_formula(q, k, v, scale, added):
    """softmax(scale · q kᵀ + added) v, one query at a time, every head with the key head that it shares."""
    batch, seq, heads, _ = q.shape
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            shared = h * k.shape[2] // heads
            for t in range(seq):
                scores = torch.stack([scale * q[b, t, h] @ k[b, u, shared] for u in range(k.shape[1])])
                weights = torch.softmax(scores + added[b, h, t], 0)
                out[b, t, h] = (weights.unsqueeze(1) * v[b, :, shared]).sum(0)
    return out


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 1, 5, 13])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pattern", ["causal", "bidirectional", "documents", "padding"])
def test_attention_is_the_formula(kv_heads, window, biased, pattern):
    random = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, SEQ, heads, 8, generator=random, dtype=torch.float64)
        for heads in (4, kv_heads, kv_heads)
    )
    table = torch.randn(4, 2 * SEQ - 1, generator=random, dtype=torch.float64)

    def bias(n):
        return table[:, SEQ - n : SEQ + n - 1]

    scoring = Scoring(0.3, SEQ, torch.device("cpu"), window, bias if biased else None)
    segments = torch.tensor([[0] * 5 + [1] * 8, [0] * 1 + [1] * 7 + [2] * 5])
    valid = torch.arange(SEQ) < torch.tensor([[9], [13]])
    made = {
        "causal": causal,
        "bidirectional": bidirectional,
        "documents": seeing_own_document(segments),
        "padding": masked(valid[:, None, None, :]),
    }[pattern](scoring)

    looks_back = pattern in ("causal", "documents")
    added = torch.zeros(2, 4, SEQ, SEQ, dtype=torch.float64)
    for b in range(2):
        for t in range(SEQ):
            for u in range(SEQ):
                if biased:
                    added[b, :, t, u] += table[:, u - t + SEQ - 1]
                hidden = looks_back and (u > t or (window is not None and t - u >= window))
                hidden |= pattern == "documents" and bool(segments[b, t] != segments[b, u])
                hidden |= pattern == "padding" and not valid[b, u]
                if hidden:
                    added[b, :, t, u] = -math.inf
    torch.testing.assert_close(made(0, q, k, v), by_formula(q, k, v, 0.3, added))


@pytest.mark.parametrize("position", ["rope", "alibi", "relative", "sinusoidal", "learned", "none"])
def test_a_document_has_the_logits_it_has_alone_whatever_the_positions(position):
    model = Decoder(model_config("tiny-100k", 100, position=position, sliding_window=6))
    model.init_weights(seed=1)
    tokens = torch.randint(0, 100, (1, 20))
    segments = torch.tensor([[0] * 8 + [1] * 12])
    positions = torch.cat((torch.arange(8), torch.arange(12))).unsqueeze(0)
    together = model(tokens, positions, seeing_own_document(segments))
    alone = torch.cat((model(tokens[:, :8]), model(tokens[:, 8:])), dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
