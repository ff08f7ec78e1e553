"""The exported tokenizer against ours, with transformers as the one that reads it."""

import inspect
import json
import json.decoder
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm.models.hugging_face.tokenizer import CHAT_TEMPLATE, Added, export_tokenizer
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import ADDED_PIECES, BOS_ID, END_ID, PAD_ID, SPECIAL_PIECES, mask_id, sentinel_id
from llm.tokenizer.train import train_tokenizer

transformers = pytest.importorskip("transformers")

IDS = {"bos_token_id": BOS_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
CORPUS = [
    "def f(x):\n    return x + 0x1f\n\n\nclass Été(Base):\n\tpass\n",
    "The quick brown fox jumps over a lazy dog.  Naïve façade; 日本語のテキスト, привет мир, 각 🎉 ﬁne ¨ ²",
    "aaaa aaaaaaa bbbbbb      ======\n        ----------\n",
] * 20 + inspect.getsource(json.decoder).split("\n\n")
# What tokenizers stumble over: white space of all kinds, ▁ itself, runs, accents apart from their letters,
# characters with rules of their own, and text that looks like a byte piece.
HOSTILE = [
    *" \t\n\r\u00a0\u3000\u200b\u2028\x00▁ab<>x0A=é日각🎉ﬁ¨²ｅ",
    "e\u0301",
    "\u1112\u1161\u11ab",
    "o\u0302\u0301",
]
HOSTILE += ["<0x0A>", "<0x", "▁▁", "  ", "    ", "aaa", "def ", "return", " the", "Été"]
TEXTS = st.lists(st.sampled_from(HOSTILE), max_size=20).map("".join) | st.text(
    st.characters(exclude_categories=["Cs", "Mn", "Mc", "Me", "Lo"]), max_size=20
)
KINDS = [
    (model, normalization)
    for model in ("bpe", "unigram", "char")
    for normalization in ("lossless", "nmt_nfkc")
]


@cache
def both(
    model_type: Any, normalization: Any, architecture: str = "llama"
) -> tuple[SentencePieceTokenizer, Any]:
    """Ours, and theirs as AutoTokenizer loads it beside a model of some architecture."""
    ours = SentencePieceTokenizer(
        train_tokenizer(CORPUS, vocab_size=420, model_type=model_type, normalization=normalization)
    )
    directory = Path(mkdtemp())
    export_tokenizer(ours.model, directory, IDS, max_length=64)
    (directory / "config.json").write_text(json.dumps({"model_type": architecture}))
    return ours, transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize(("model_type", "normalization"), KINDS)
def test_ids_and_texts_are_equal_on_hostile_texts(model_type: str, normalization: str) -> None:
    ours, theirs = both(model_type, normalization)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        assume(not any(piece in text for piece in SPECIAL_PIECES))
        ids = ours.encode(text)
        got = theirs.encode(text)
        if got != ids:
            assert model_type == "unigram"
            assert sum(map(ours_score, got)) == pytest.approx(sum(map(ours_score, ids)), rel=1e-6)
        assert theirs.decode(ids) == ours.decode(ids)

    ours_score = ours._processor.get_score
    check()
    for text in (
        "",
        " ",
        "▁",
        "\n\n  \tdef f(x):\n        return x\n" * 40,
        " The quick  brown ﬁne\u3000fox " * 40,
    ):
        assert theirs.encode(text) == ours.encode(text)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gpt2", "t5", "bert"])
def test_every_architecture_gets_the_tokenizer_that_was_written(architecture: str) -> None:
    ours, theirs = both("bpe", "nmt_nfkc", architecture)
    text = "  Naïve façade, 日本語\n<0x0A>▁"
    assert theirs.encode(text) == theirs(text)["input_ids"] == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (BOS_ID, END_ID, PAD_ID)
    assert theirs.convert_ids_to_tokens(range(8)) == list(SPECIAL_PIECES)
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("normalization", ["lossless", "nmt_nfkc"])
def test_the_chat_template_renders_what_we_encode(normalization: str) -> None:
    ours, theirs = both("bpe", normalization)
    messages = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": " def f(x):\n"},
        {"role": "assistant", "content": "    return x  "},
        {"role": "user", "content": "▁class"},
    ]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(ours, messages)
    assert theirs.chat_template == CHAT_TEMPLATE


def test_what_users_spell_is_text_if_asked(tmp_path: Path) -> None:
    ours, theirs = both("bpe", "lossless")
    text = "<|assistant|> <bos>"
    assert theirs.encode(text) != ours.encode(text)
    assert theirs.encode(text, split_special_tokens=True) == ours.encode(text)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(("architecture", "family"), [("t5", "encoder-decoder"), ("bert", "encoder")])
def test_pieces_that_a_model_adds_have_its_ids(
    model_type: str, architecture: str, family: str, tmp_path: Path
) -> None:
    """A text with holes, written as users of T5 and BERT write it, is what such a model was trained on."""
    ours, _ = both(model_type, "lossless")
    added = ADDED_PIECES[family]
    export_tokenizer(ours.model, tmp_path, IDS, 64, Added(len(ours) + len(added), added))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(ours) + len(added)
    hole, id = (
        ("<mask>", mask_id(len(ours))) if len(added) == 1 else ("<extra_id_0>", sentinel_id(len(ours), 0))
    )
    before, after = "def f(x):\n    return", " + 1\n"
    assert theirs.encode(before + hole + after) == [*ours.encode(before), id, *ours.encode(after)]
    assert theirs.mask_token == ("<mask>" if family == "encoder" else None)


def test_word_models_have_no_counterpart(tmp_path: Path) -> None:
    model = train_tokenizer(CORPUS, vocab_size=300, model_type="word")
    export_tokenizer(model, tmp_path, IDS, max_length=64)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]
