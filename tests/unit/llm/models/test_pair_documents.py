"""Pairs that share the rows of an encoder-decoder learn as if each had rows of its own."""

import pytest
import torch

from llm.data.pairs import lay_out
from llm.models.documents import documents_of_pair
from llm.models.encoder_decoder import EncoderDecoder, seeing_own_pair
from llm.models.presets import model_config

PAD, EOS, VOCAB = 0, 3, 60
SIZES = {"d_model": 32, "d_ff": 48, "n_layers": 2, "n_encoder_layers": 2, "n_heads": 4, "n_kv_heads": 4}
SHAPES = [
    ("t5-small", {}),
    ("t5-v1.1-small", {"n_kv_heads": 2}),
    ("transformer-base", {}),
    ("transformer-base", {"position": "rope", "norm_placement": "pre", "sliding_window": 4}),
]


def pair(read: int, written: int):
    random = torch.Generator().manual_seed(100 * read + written)
    return tuple(
        [*torch.randint(4, VOCAB, (n - 1,), generator=random).tolist(), EOS] for n in (read, written)
    )


ROWS = [[pair(9, 4), pair(3, 8), pair(12, 2)], [pair(20, 13)], []]


@pytest.mark.parametrize(("preset", "more"), SHAPES)
def test_a_pair_in_a_row_has_the_logits_and_the_gradient_that_it_has_alone(preset, more):
    model = EncoderDecoder(model_config(preset, VOCAB, **SIZES | {"head_dim": 8} | more))
    model.init_weights(seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    model.double()

    def tensors(rows):
        made = lay_out(rows, PAD, EOS)
        return [torch.from_numpy(each) for each in (made.inputs, made.tokens, made.targets)]

    def loss(logits, targets):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    inputs, tokens, targets = tensors(ROWS)
    logits = model(inputs, tokens, sight=seeing_own_pair(*documents_of_pair(inputs, tokens, EOS, PAD)))
    assert torch.isfinite(logits).all(), "rows of padding too"
    loss(logits, targets).backward()
    together = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()

    for row, members in enumerate(ROWS):
        place = 0
        for one in members:
            inputs, tokens, targets = tensors([[one]])
            alone = model(inputs, tokens)
            end = place + tokens.shape[1]
            torch.testing.assert_close(logits[row, place:end], alone[0], rtol=1e-10, atol=1e-10)
            loss(alone, targets).backward()
            place = end
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together.pop(0), parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_documents_are_numbered_on_both_sides():
    made = lay_out(ROWS, PAD, EOS)
    read, written = documents_of_pair(torch.from_numpy(made.inputs), torch.from_numpy(made.tokens), EOS, PAD)
    assert read[0].tolist() == [1] * 9 + [2] * 3 + [3] * 12
    assert written[0].tolist() == [1] * 4 + [2] * 8 + [3] * 2
    assert read[1].tolist() == [1] * 20 + [2] * 4, "padding is nobody's"
    assert written[1:].tolist() == [[1] * 14] * 2
