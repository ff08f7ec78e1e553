"""Documents that share a row learn and answer as if each had a row of its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.models.decoder import Decoder
from llm.models.documents import positions_in, seeing_own_document, segments_of
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets

OPENING = 3
CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48, n_heads=4, n_kv_heads=2)


@pytest.fixture
def model():
    model = Decoder(CONFIG)
    model.init_weights(seed=1)
    return model


def rows(*lengths_of_rows):
    """Rows of documents of these lengths, each of which begins with the opening token."""
    random = torch.Generator().manual_seed(0)
    documents = [
        [
            torch.cat([torch.tensor([OPENING]), torch.randint(4, 100, (n - 1,), generator=random)])
            for n in lengths
        ]
        for lengths in lengths_of_rows
    ]
    return torch.stack([torch.cat(row) for row in documents]), documents


def test_a_document_in_a_row_has_the_logits_that_it_has_alone(model):
    tokens, documents = rows([5, 1, 12, 6], [24])
    segments = segments_of(tokens, OPENING)
    logits = model(tokens, positions_in(segments), seeing_own_document(segments))
    for row, parts in enumerate(documents):
        alone = torch.cat([model(document.unsqueeze(0))[0] for document in parts])
        torch.testing.assert_close(logits[row], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(tokens)[0], logits[0], atol=1e-3), "without the mask they see each other"


def test_the_gradient_is_the_sum_of_the_documents_gradients(model):
    tokens, documents = rows([5, 12, 7])
    last = torch.cat([torch.arange(len(each)) == len(each) - 1 for each in documents[0]])
    targets = next_token_targets(tokens).masked_fill(last, -100)
    language_model_loss(model, OPENING)(tokens, targets).backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for document in documents[0]:
        one = document.unsqueeze(0)
        language_model_loss(model)(one, next_token_targets(one)).backward()
    for got, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-5)


@given(st.lists(st.lists(st.sampled_from([OPENING, 4, 5]), min_size=9, max_size=9), min_size=1, max_size=3))
def test_positions_count_from_the_opening_of_each_document(values):
    segments = segments_of(torch.tensor(values), OPENING)
    positions = positions_in(segments)
    for row, tokens in enumerate(values):
        number, position = 0, -1
        for place, token in enumerate(tokens):
            number, position = (number + 1, 0) if token == OPENING else (number, position + 1)
            assert (segments[row, place], positions[row, place]) == (number, position)
