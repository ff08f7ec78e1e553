"""Answers of encoder-decoders against full recomputation, row by row."""

import pytest
import torch

from llm.engine.encoder_decoder import answer, answer_all
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.presets import model_config

START, STOP = 0, 1
SMALL = {
    "d_model": 32,
    "d_ff": 48,
    "n_layers": 2,
    "n_encoder_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "head_dim": 8,
}


def lively(preset: str, **more) -> EncoderDecoder:
    """Random, with logits far apart."""
    model = EncoderDecoder(model_config(preset, 60, **SMALL | more))
    model.init_weights(seed=4)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative" in name:
                parameter.normal_(generator=random)
            elif parameter.dim() == 2 and name != "embed.weight":
                parameter.mul_(8 if "cross" in name else 3)
    return model.eval()


def by_recomputation(model: EncoderDecoder, row: list[int], max_tokens: int) -> list[int]:
    tokens = [START]
    while len(tokens) <= max_tokens:
        logits = model(torch.tensor([row]), torch.tensor([tokens]))[0, -1, : model.config.vocab_size]
        tokens.append(int(logits.argmax()))
        if tokens[-1] == STOP:
            return tokens[1:-1]
    return tokens[1:]


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("t5-small", {}),
        ("t5-v1.1-small", {"n_kv_heads": 2}),
        ("transformer-base", {"tie_embeddings": False}),
        (
            "transformer-base",
            {"position": "rope", "norm_placement": "pre", "sliding_window": 3, "tie_embeddings": False},
        ),
    ],
)
def test_a_padded_batch_is_answered_as_each_row_alone(preset, more):
    model = lively(preset, **more)
    rows = [
        torch.randint(2, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(1, 9)
    ]
    inputs = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    valid = torch.arange(8) < torch.tensor([[len(row)] for row in rows])
    with torch.no_grad():
        expected = [by_recomputation(model, row, 12) for row in rows]
    assert answer(model, inputs, valid, start_id=START, stop_id=STOP, max_tokens=12) == expected
    assert len({tuple(each) for each in expected}) > 1, "they must depend on what was read"


def test_an_answer_ends_before_the_stop_token():
    model = lively("t5-small")
    inputs = torch.tensor([[5, 6, 7]])
    whole = answer(model, inputs, start_id=START, stop_id=-1, max_tokens=10)[0]
    stop = whole[4]
    assert answer(model, inputs, start_id=START, stop_id=stop, max_tokens=10)[0] == whole[: whole.index(stop)]
    with pytest.raises(ValueError, match="max_tokens=9999 is beyond the model's max_seq_len=512"):
        answer(model, inputs, start_id=START, stop_id=STOP, max_tokens=9999)


def test_many_are_answered_in_their_order_whatever_the_batches():
    model = lively("t5-small")
    random = torch.Generator().manual_seed(7)
    sources = [torch.randint(2, 60, (n,), generator=random).tolist() for n in (7, 2, 9, 4, 4, 1, 6)]
    with torch.no_grad():
        expected = [by_recomputation(model, row, 8) for row in sources]
    for batch_size in (1, 3, 20):
        found = answer_all(
            model, sources, batch_size=batch_size, start_id=START, pad_id=0, stop_id=STOP, max_tokens=8
        )
        assert found == expected
