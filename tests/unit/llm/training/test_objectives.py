"""Each family's objective: what it gives a model, and that the loss of that is the plain cross-entropy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.data.span_corruption import SpanCorruption
from llm.models.load import build
from llm.models.presets import model_config
from llm.tokenizer.special import ADDED_PIECES, EOS_ID, FIRST_BYTE_ID, PAD_ID, mask_id, sentinel_id
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE
from llm.training.objectives import corrupted_spans, masked_tokens, next_token

TEXT_IDS, WINDOW, SEED = 300, 40, 7
OBJECTIVES = {
    "tiny-100k": next_token,
    "t5-tiny": corrupted_spans(SpanCorruption(), seed=SEED, text_ids=TEXT_IDS),
    "bert-tiny": masked_tokens(0.15, seed=SEED, text_ids=TEXT_IDS),
}


def texts(samples):
    rows = np.random.default_rng(0).integers(FIRST_BYTE_ID, TEXT_IDS, (samples, WINDOW))
    rows[:, 11] = EOS_ID
    return rows


def real_model(preset):
    torch.set_num_threads(1)
    config = model_config(preset, TEXT_IDS + len(ADDED_PIECES[model_config(preset).family]))
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=3)
    return model.double()


def test_an_encoder_decoder_is_told_where_the_holes_are_and_begins_with_pad():
    """Read as a user of T5 reads it: the answer's spans put into the holes of the inputs are the text."""
    rows = texts(5)
    inputs, tokens, targets = OBJECTIVES["t5-tiny"](rows, 90)
    for row, given, shown, wanted in zip(
        rows.tolist(), inputs.tolist(), tokens.tolist(), targets.tolist(), strict=True
    ):
        assert shown == [PAD_ID, *wanted[:-1]]
        assert given.pop() == wanted.pop() == EOS_ID
        text, spans = [], {}
        for token in wanted:
            if token >= TEXT_IDS:
                span = spans.setdefault(token, [])
            else:
                span.append(token)
        for token in given:
            text += spans[token] if token >= TEXT_IDS else [token]
        assert text == row
        assert list(spans) == [sentinel_id(TEXT_IDS, k) for k in range(len(spans))]
        assert len(spans) == 2


def test_rows_that_are_divided_are_filled_up_with_what_predicts_nothing():
    rows = texts(5)
    inputs, tokens, targets = OBJECTIVES["t5-tiny"](rows, 90)
    filled = corrupted_spans(SpanCorruption(), seed=SEED, text_ids=TEXT_IDS, multiple=8)(rows, 90)
    length = targets.shape[1]
    assert length % 8
    assert filled[2].shape == filled[1].shape == (5, -(-length // 8) * 8)
    assert torch.equal(filled[0], inputs)
    assert torch.equal(filled[1][:, :length], tokens)
    assert torch.equal(filled[2][:, :length], targets)
    assert (filled[2][:, length:] == IGNORE).all()


def test_sentinels_and_mask_are_the_ids_after_the_tokenizers_as_in_hugging_faces_t5():
    from transformers import T5Tokenizer

    theirs = T5Tokenizer()
    text_ids = len(theirs) - 100
    added = ADDED_PIECES["encoder-decoder"]
    assert [text_ids + place for place in range(100)] == theirs.convert_tokens_to_ids(list(added))
    for span in (0, 1, 99):
        assert sentinel_id(text_ids, span) == theirs.convert_tokens_to_ids(f"<extra_id_{span}>")
        assert added[sentinel_id(0, span)] == f"<extra_id_{span}>"
    assert ADDED_PIECES["encoder"][mask_id(0)] == "<mask>"


def test_an_encoder_sees_the_text_but_for_what_it_is_to_guess():
    rows = texts(200)
    shown, targets = (each.numpy() for each in OBJECTIVES["bert-tiny"](rows, 90))
    masked = targets != IGNORE
    assert (np.where(masked, targets, shown) == rows).all()
    assert (masked.sum(1) == round(0.15 * (WINDOW - 1))).all()
    assert not masked[:, 11].any(), "<eos> is never hidden"
    assert (shown[masked] == mask_id(TEXT_IDS)).mean() == pytest.approx(0.8, abs=0.04)
    assert shown[masked].min() >= FIRST_BYTE_ID


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_a_sample_gives_the_same_in_any_batch(preset):
    rows, objective = texts(6), OBJECTIVES[preset]
    together = objective(rows, 10)
    for size in (1, 2, 5):
        parts = [objective(rows[first : first + size], 10 + first) for first in range(0, 6, size)]
        for whole, pieces in zip(together, zip(*parts, strict=True), strict=True):
            assert torch.equal(whole, torch.cat(pieces))
    assert preset == "tiny-100k" or not torch.equal(together[0], objective(rows, 11)[0])


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_the_loss_is_the_cross_entropy_of_the_models_logits(preset):
    """In float64, with all logits; and so is its gradient."""
    model, micro_batch = real_model(preset), OBJECTIVES[preset](texts(3), 0)
    *given, targets = micro_batch
    loss = language_model_loss(model)(*micro_batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(*given)[..., : model.config.vocab_size]
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_an_encoder_that_has_nothing_to_guess_learns_nothing():
    """A rank's last micro-batch may hold but rows without a target; under FSDP it makes its passes all the
    same.
    """
    model, (shown, targets) = real_model("bert-tiny"), OBJECTIVES["bert-tiny"](texts(2), 0)
    loss = language_model_loss(model)(shown, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
