"""Incremental text against the whole text, whatever the pieces."""

import random

import pytest

from llm.engine.request import Output
from llm.tokenizer.byte_level import ByteLevelTokenizer
from llm.tokenizer.renumber_json import renumber_json
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import SPECIAL_PIECES
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import train_tokenizer
from pipelines.serve.choice import Choice
from pipelines.serve.detokenizer import Detokenizer, StopStrings, token_text
from tests.byte_level_forms import FORMS, make_tokenizer

TEXT = "def f(x):\n    return 'naïve café 日本語 🎉🎉' + x\n\n\ndef g():\n    pass\n"


LEARNED = ["def f(x):\n    return x\n", "def g():\n    pass\n"]


@pytest.fixture(scope="module", params=["sentencepiece", *FORMS])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "sentencepiece":
        return SentencePieceTokenizer(train_tokenizer(LEARNED * 30, vocab_size=330))
    made = make_tokenizer(request.param, merges=40, texts=LEARNED)
    return ByteLevelTokenizer(renumber_json(made.to_str().encode(), {}).model)


def test_any_split_of_the_ids_gives_the_same_text_without_broken_characters(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert any(token_text(tokenizer, token).startswith("bytes:") for token in ids)
    for seed in range(50):
        rng, detokenizer, pieces = random.Random(seed), Detokenizer(tokenizer), []
        rest = ids
        while rest:
            size = rng.randint(1, 6)
            pieces.append(detokenizer.push(rest[:size]))
            rest = rest[size:]
        pieces.append(detokenizer.push([], final=True))
        assert "".join(pieces) == TEXT
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_at_the_end_is_replaced(tokenizer):
    ids = tokenizer.encode("é")[:1]
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids) == ""
    assert detokenizer.push([], final=True) == "\ufffd"
    assert token_text(tokenizer, ids[0]) == "bytes:\\xc3"


def test_every_token_has_a_name_of_its_own(tokenizer):
    names = [token_text(tokenizer, token) for token in range(len(tokenizer))]
    assert names[: len(SPECIAL_PIECES)] == list(SPECIAL_PIECES)
    assert "" not in names
    # SentencePiece may have a character both as a piece and as a byte.
    assert isinstance(tokenizer, SentencePieceTokenizer) or len(set(names)) == len(names)


@pytest.mark.parametrize("stops", [["\n\ndef"], ["pass", "return 'n"], ["🎉'"], ["zzz"], ["aab"], [""], []])
def test_stop_strings_cut_where_a_search_of_the_whole_text_does(stops):
    text = TEXT + "aaaaab"
    places = [text.find(stop) for stop in stops if stop and stop in text]
    expected = text[: min(places)] if places else text
    for seed in range(50):
        rng, stopper, shown, rest = random.Random(seed), StopStrings(stops), "", text
        while rest and not stopper.found:
            size = rng.randint(1, 5)
            shown += stopper.push(rest[:size])
            assert expected.startswith(shown), "nothing may be shown that is cut later"
            rest = rest[size:]
        shown += stopper.push("", final=True)
        assert shown == expected
        assert stopper.found == bool(places)


def outputs_of(tokenizer: Tokenizer, ids: list[int], rng: random.Random) -> list[Output]:
    outputs, start = [], 0
    while start < len(ids):
        size = rng.randint(1, 4)
        part = ids[start : start + size]
        outputs.append(Output("a", part, [-float(start + i) for i in range(len(part))]))
        start += size
    outputs[-1].finish_reason = "length"
    return outputs


@pytest.mark.parametrize("stop", [None, "return", "日本", "\n\n\nd"])
def test_a_choice_pairs_tokens_with_the_text_they_begin(tokenizer, stop):
    ids = tokenizer.encode(TEXT)
    expected = TEXT[: TEXT.index(stop)] if stop else TEXT
    for seed in range(30):
        choice = Choice(0, tokenizer, [stop] if stop else [])
        text, tokens = "", []
        for output in outputs_of(tokenizer, ids, random.Random(seed)):
            delta = choice.push(output)
            text += delta.text
            tokens += delta.tokens
            if delta.finish_reason:
                break
        assert text == expected
        assert choice.finish_reason == ("stop" if stop else "length")
        assert [t.id for t in tokens] == ids[: len(tokens)]
        assert [t.logprob for t in tokens] == [-float(i) for i in range(len(tokens))]
        for token in tokens:
            assert (
                len(tokenizer.decode_bytes(ids[: tokens.index(token)]).decode(errors="ignore"))
                == token.offset
            )
        covered = tokenizer.decode(t.id for t in tokens)
        assert covered.startswith(expected), "every shown character has its token"
        assert len(tokenizer.decode([t.id for t in tokens][:-1])) < len(expected) or not stop


def test_echo_comes_first_with_its_scores(tokenizer):
    prompt, reply = tokenizer.encode("def g():"), tokenizer.encode(" pass")
    scores = [-0.5] * (len(prompt) - 1)
    choice = Choice(0, tokenizer, ["def"], echo_ids=prompt)
    first = choice.push(Output("a", reply, [-1.0] * len(reply), prompt_logprobs=scores, finish_reason="stop"))
    assert first.text == "def g(): pass", "stop strings are looked for in what is generated only"
    assert [t.logprob for t in first.tokens] == [None, *scores, *[-1.0] * len(reply)]
    assert first.tokens[len(prompt)].offset == len("def g():")
