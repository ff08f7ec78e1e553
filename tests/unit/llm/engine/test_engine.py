"""The engine against full recomputation of every sequence by itself."""

import random

import numpy as np
import pytest
import torch

from llm.engine.engine import Engine
from llm.engine.generate import generate
from llm.engine.request import Request, RequestError, SamplingParams
from llm.models.decoder import Decoder
from llm.models.presets import model_config
from tests.unit.llm.engine.reference import generate_alone, lively_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return lively_model()


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(8, 500, length).tolist()


def mixed_requests() -> list[Request]:
    """From one token to several chunks; greedy, plain, top-k, top-p and both; with and without stops."""
    ways = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 7},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "stop_token_ids": tuple(range(8, 120))},
    ]
    return [
        Request(
            f"r{i}", prompt(length, i), SamplingParams(max_tokens=5 + i % 11, seed=i * 1000, **ways[i % 5])
        )
        for i, length in enumerate([1, 5, 17, 33, 64, 90, 2, 40, 3, 21, 100, 8, 12, 1, 55])
    ]


@pytest.fixture(scope="module")
def expected(model):
    return {r.id: generate_alone(model, r.prompt_ids, r.params) for r in mixed_requests()}


@pytest.mark.parametrize("max_batch, step_tokens", [(1, 200), (4, 5), (6, 32), (16, 1024)])
def test_any_batch_any_chunking_any_order_equals_full_recomputation(model, expected, max_batch, step_tokens):
    engine = Engine(model, max_batch=max_batch, step_tokens=step_tokens)
    requests = mixed_requests()
    random.Random(step_tokens).shuffle(requests)
    completions = generate(engine, requests)
    assert [c.id for c in completions] == [r.id for r in requests]
    for request, completion in zip(requests, completions, strict=True):
        tokens, logprobs = expected[request.id]
        assert completion.response_ids == tokens, request
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=2e-4)
        stopped = tokens[-1] in request.params.stop_token_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
    assert any(c.finish_reason == "stop" for c in completions)
    assert not engine.has_work()
    assert not engine.scheduler.running


@pytest.mark.parametrize(
    "shape",
    [
        {"sliding_window": 9},
        {"position": "alibi"},
        {"position": "relative", "attention_scale": 0.2},
        {"position": "alibi", "sliding_window": 20, "n_heads": 8, "n_kv_heads": 2},
        {"position": "learned", "norm": "layer", "bias": True, "gated": False},
        {"qk_norm": True, "rope_scaling": {"kind": "llama3", "factor": 4, "original_max_seq_len": 64}},
    ],
)
def test_every_way_of_knowing_places_is_generated_with(shape):
    model = lively_model(**shape)
    if model.relative is not None:
        torch.nn.init.normal_(model.relative.weight, generator=torch.Generator().manual_seed(0))
    requests = mixed_requests()[:11]
    completions = generate(Engine(model, max_batch=6, step_tokens=24), requests)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.response_ids == generate_alone(model, request.prompt_ids, request.params)[0]


def test_requests_that_arrive_midway_change_nothing(model, expected):
    engine = Engine(model, max_batch=6, step_tokens=24)
    waiting, tokens = mixed_requests(), {}
    while waiting or engine.has_work():
        if waiting:
            engine.add(waiting.pop())
        for output in engine.step():
            tokens.setdefault(output.id, []).extend(output.token_ids)
    assert tokens == {name: ids for name, (ids, _) in expected.items()}


def test_prompt_logprobs_and_alternatives_equal_a_plain_forward(model):
    ids = prompt(70)
    with torch.no_grad():
        exact = torch.log_softmax(model(torch.tensor([ids]))[0, :, :500], -1)
    params = SamplingParams(max_tokens=0, prompt_logprobs=True, logprobs=3)
    others = [Request(f"o{i}", prompt(9, i), SamplingParams(20, seed=i)) for i in range(3)]
    engine = Engine(model, max_batch=4, step_tokens=16)
    (scored, *_) = generate(engine, [Request("scored", ids, params), *others])
    assert scored.response_ids == []
    assert scored.finish_reason == "length"
    np.testing.assert_allclose(scored.prompt_logprobs, exact[range(69), ids[1:]].numpy(), atol=1e-4)
    values, tokens = exact[:-1].topk(3)
    assert [[t for t, _ in row] for row in scored.prompt_top_logprobs] == tokens.tolist()
    got = np.array([[v for _, v in row] for row in scored.prompt_top_logprobs])
    np.testing.assert_allclose(got, values.numpy(), atol=1e-4)


def test_top_logprobs_are_of_the_distribution_sampled_from(model):
    params = SamplingParams(6, temperature=0.8, top_k=4, logprobs=10, seed=5)
    (completion,) = generate(Engine(model), [Request("a", prompt(10), params)])
    for token, logprob, top in zip(
        completion.response_ids, completion.logprobs, completion.top_logprobs, strict=True
    ):
        assert len(top) == 4  # the other six are impossible
        assert np.exp([v for _, v in top]).sum() == pytest.approx(1, abs=1e-5)
        assert dict(top)[token] == pytest.approx(logprob)


def test_a_long_prompt_stalls_nobody(model):
    engine = Engine(model, max_batch=4, step_tokens=16)
    for i in range(3):
        engine.add(Request(f"short{i}", prompt(2, i), SamplingParams(30, seed=i)))
    engine.step()
    engine.add(Request("long", prompt(200), SamplingParams(5)))
    for _ in range(200 // 13):
        assert {o.id for o in engine.step()} == {"short0", "short1", "short2"}
    assert "long" in {o.id for o in engine.step()}


def test_abort_frees_the_slot_and_disturbs_nobody(model, expected):
    requests = mixed_requests()
    engine = Engine(model, max_batch=3, step_tokens=20)
    for request in requests:
        engine.add(request)
    tokens, doomed = {}, {"r0", "r4", "r5", "r9", "r14"}
    for step in range(1000):
        for output in engine.step():
            tokens.setdefault(output.id, []).extend(output.token_ids)
        for name in sorted(doomed):  # while it waits, during prefill, and during decoding
            state = engine.sequences.get(name)
            if state is not None and (name == "r14" or state.computed > 0) and step >= 1:
                assert engine.abort(name)
                doomed.discard(name)
        if not engine.has_work():
            break
    assert not engine.abort("r1"), "it has finished"
    for name, (ids, _) in expected.items():
        if name not in ("r0", "r4", "r5", "r9", "r14"):
            assert tokens[name] == ids
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting


def test_new_weights_take_over_between_steps():
    old, new = lively_model(seed=1), lively_model(seed=2)
    new_state = {name: p.detach().clone() for name, p in new.named_parameters()}
    engine = Engine(old, max_batch=2, step_tokens=16)
    request = Request("a", prompt(30), SamplingParams(12, seed=3, prompt_logprobs=True))
    engine.add(request)
    before = []
    while len(before) < 5:
        before += [t for o in engine.step() for t in o.token_ids]

    with pytest.raises(ValueError, match=r"differ in embed\.weight"):
        engine.update_weights(new_state | {"embed.weight": torch.zeros(3, 3)}, version=9)
    assert engine.weights_version == 0

    engine.update_weights(new_state, version=1)
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert {o.weights_version for o in outputs} == {1}
    after = [t for o in outputs for t in o.token_ids]
    rest = SamplingParams(7, seed=3)
    assert after == generate_alone(new, request.prompt_ids + before, rest)[0]
    assert all(o.prompt_logprobs is None for o in outputs)


def test_pause_holds_everything(model):
    engine = Engine(model)
    engine.add(Request("a", prompt(4), SamplingParams(3)))
    engine.pause()
    assert engine.step() == []
    engine.resume()
    assert len(engine.step()) == 1


def test_bfloat16_stays_close():
    """Log-probabilities of prompts and of what bf16 samples, against an fp32 forward pass of the whole."""

    def spread_model():
        spread = Decoder(model_config("tiny-100k", 500, tie_embeddings=False))
        spread.init_weights(0)
        with torch.no_grad():
            spread.head.weight.mul_(15)
        return spread.eval()

    params = SamplingParams(12, prompt_logprobs=True)
    requests = [Request(str(i), prompt(40 + i, i), params) for i in range(4)]
    completions = generate(Engine(spread_model(), step_tokens=50, dtype=torch.bfloat16), requests)
    exact, rounded = [], []
    for completion in completions:
        tokens = torch.tensor(completion.prompt_ids + completion.response_ids)
        with torch.no_grad():
            logits = spread_model()(tokens[None])[0, :-1, :500]
        exact.append(torch.log_softmax(logits, -1).gather(1, tokens[1:, None]).squeeze(1))
        rounded.append(torch.tensor(completion.prompt_logprobs + completion.logprobs))
    difference = (torch.cat(rounded) - torch.cat(exact)).abs()
    assert len(difference) == sum(len(request.prompt_ids) + 11 for request in requests)
    assert torch.cat(exact).std() > 1.5, "tokens differ enough in probability for an error to show"
    assert 1e-4 < difference.max() < 0.1


@pytest.mark.parametrize(
    "ids, params, message",
    [
        ([], {}, "the prompt is empty"),
        (
            [9] * 250,
            {"max_tokens": 10},
            "250 tokens and max_tokens=10 exceed the 256 there is room for: .* at most 6",
        ),
        ([500], {}, "token id outside 0 … 499"),
        ([-1], {}, "token id outside"),
        ([9], {"temperature": -1}, "temperature is -1; it must be a number from 0 up"),
        ([9], {"temperature": float("nan")}, "temperature is nan"),
        ([9], {"top_p": 0}, "top_p is 0; it must be above 0"),
        ([9], {"top_k": -2}, "top_k is -2"),
        ([9], {"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_requests_are_refused_with_the_mend(model, ids, params, message):
    engine = Engine(model)
    with pytest.raises(RequestError, match=message):
        engine.add(Request("a", ids, SamplingParams(**{"max_tokens": 5} | params)))
    assert not engine.has_work()


def test_duplicate_ids_and_impossible_engines_are_refused(model):
    engine = Engine(model)
    engine.add(Request("a", [9], SamplingParams(5)))
    with pytest.raises(RequestError, match="already in the engine"):
        engine.add(Request("a", [9], SamplingParams(5)))
    with pytest.raises(ValueError, match="max_seq_len=512 is beyond the 256"):
        Engine(model, max_seq_len=512)
    with pytest.raises(ValueError, match="prefill starves"):
        Engine(model, max_batch=64, step_tokens=64)
