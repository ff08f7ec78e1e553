"""Byte-level tokenizers with our ids, compared with transformers' reading of the original folder."""

import json
import pickle
import unicodedata
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as cuts

from llm.tokenizer.byte_level import ByteLevelTokenizer
from llm.tokenizer.chat import encode_conversation, encode_prompt
from llm.tokenizer.documents import document_encoder
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.renumber import Renumbered
from llm.tokenizer.renumber_json import renumber_json
from llm.tokenizer.special import ASSISTANT_ID, BOS_ID, END_ID, EOS_ID, PAD_ID, SPECIAL_PIECES, USER_ID
from llm.tokenizer.train import train_tokenizer
from tests.byte_level_forms import FORMS, TEXTS, make_tokenizer, save_tokenizer

transformers = pytest.importorskip("transformers")

MEANINGS: dict[str, dict[int, str | int]] = {
    "gpt2": {EOS_ID: 376, BOS_ID: 376},
    "llama3": {EOS_ID: "<|end_of_text|>", BOS_ID: "<|begin_of_text|>"},
    "qwen3": {EOS_ID: "<|im_end|>", PAD_ID: "<|endoftext|>"},
}
HOSTILE = [
    *TEXTS,
    *SPECIAL_PIECES,
    "<|endoftext|><|im_end|> <|begin_of_text|><|eot_id|>",
    "a<think>b</think> <think",
    "\x00\x7f\x80\u00adĠĊé",
    "e\u0301 \u1e9b\u0323 \ufb01 \u212b 가각",
    "  \n \t\n\n  x  ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \ufeff\ufdd0",
]
any_text = st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE), st.text(" \n'tTheé1"))).map("".join)


@cache
def both(form: str) -> tuple[ByteLevelTokenizer, Renumbered, Any]:
    """Ours, what it was made as, and AutoTokenizer of the original folder."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        save_tokenizer(form, directory)
        model_type = {"gpt2": "gpt2", "llama3": "llama", "qwen3": "qwen3"}[form]
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
        made = renumber_json((directory / "tokenizer.json").read_bytes(), MEANINGS[form])
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
    return ByteLevelTokenizer(made.model), made, theirs


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300, deadline=None)
@given(text=any_text)
@example(text="".join(HOSTILE))
def test_every_text_is_cut_as_transformers_cuts_it(form: str, text: str) -> None:
    ours, made, theirs = both(form)
    ids = ours.encode(text)
    expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert [made.rows[id] for id in ids] == expected
    vocab = list(json.loads(ours.model)["model"]["vocab"])
    assert [vocab[id] for id in ids] == theirs.convert_ids_to_tokens(expected)
    assert ours.decode(ids) == (unicodedata.normalize("NFC", text) if form == "qwen3" else text)
    assert ours.decode(ids) == ours.normalised(text)
    assert ours.encode_arrays([text, "x"])[0].tolist() == ids
    assert min(ids, default=len(SPECIAL_PIECES)) >= len(SPECIAL_PIECES)


@pytest.mark.parametrize("form", FORMS)
def test_our_special_pieces_come_first_and_all_others_in_their_order(form: str) -> None:
    ours, made, theirs = both(form)
    row = {piece: made.rows[id] for id, piece in enumerate(SPECIAL_PIECES)}
    expected = {EOS_ID: None, BOS_ID: None, PAD_ID: None} | MEANINGS[form]
    had = {id: theirs.convert_tokens_to_ids(e) if isinstance(e, str) else e for id, e in expected.items()}
    if form == "gpt2":  # one piece both begins and ends a text, and there it is our end
        had[BOS_ID] = None
    assert row == {piece: had.get(id) for id, piece in enumerate(SPECIAL_PIECES)}
    rest = made.rows[len(SPECIAL_PIECES) :]
    assert rest == sorted(set(range(len(theirs))) - set(had.values()))
    assert len(ours) == ours.vocab_size == len(made.rows)
    again = renumber_json(made.model, {EOS_ID: END_ID})  # ours already, whatever a chat model ends with
    assert (again.model, again.rows) == (made.model, list(range(len(ours))))


def test_files_as_they_were_written_years_ago_are_read() -> None:
    content = json.loads(make_tokenizer("gpt2").to_str())
    model, cuts = content["model"], content["pre_tokenizer"]
    merges = [" ".join(merge) for merge in model["merges"]]
    old = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["model"] = old | {"fuse_unk": False, "vocab": model["vocab"], "merges": merges}
    content["pre_tokenizer"] = {name: each for name, each in cuts.items() if name != "use_regex"}
    content["normalizer"] = {"type": "Sequence", "normalizers": []}
    ours = ByteLevelTokenizer(renumber_json(json.dumps(content).encode(), MEANINGS["gpt2"]).model)
    assert [ours.encode(text) for text in HOSTILE] == [both("gpt2")[0].encode(text) for text in HOSTILE]
    assert ours.is_lossless


def test_it_behaves_as_any_tokenizer_of_ours(tmp_path: Path) -> None:
    ours, made, _ = both("qwen3")
    (tmp_path / "tokenizer.json").write_bytes(made.model)
    for loaded in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(ours))):
        assert (loaded.fingerprint, loaded.encode(TEXTS[1])) == (ours.fingerprint, ours.encode(TEXTS[1]))
    messages = [
        {"role": "user", "content": "the <|end|> fox?"},
        {"role": "assistant", "content": "日本 <think>"},
    ]
    ids, learned = encode_conversation(ours, messages)
    prompt = encode_prompt(ours, messages[:1])
    assert prompt == [BOS_ID, USER_ID, *ours.encode(messages[0]["content"]), END_ID, ASSISTANT_ID]
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :] == [*ours.encode("日本 <think>"), END_ID]
    assert learned == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert ours.decode(ids) == "the <|end|> fox?日本 <think>", "special pieces have no text, added ones have"
    for call in (ours.encode, lambda text: ours.encode_arrays(["a", text])):
        with pytest.raises(UnicodeEncodeError):
            call("a\ud800")
    other = train_tokenizer(TEXTS * 20, vocab_size=340)
    with pytest.raises(ValueError, match="cannot be read"):
        ByteLevelTokenizer(other)
    with pytest.raises(ValueError, match="its first pieces are"):
        ByteLevelTokenizer(make_tokenizer("gpt2").to_str().encode())


@pytest.mark.parametrize("form", FORMS)
def test_columns_of_documents_are_encoded_as_each_document(form: str) -> None:
    ours, _, _ = both(form)
    texts = [*HOSTILE, "", "x" * 5_000]
    ids, ends = document_encoder(ours, np.dtype(np.uint16)).encode(pa.array(["left out", *texts])[1:])
    expected = [[*ours.encode(text), EOS_ID] for text in texts]
    assert ids.tolist() == [id for each in expected for id in each]
    assert ids.dtype == np.uint16
    assert ends.tolist() == np.cumsum([len(each) for each in expected]).tolist()
    none, no_ends = document_encoder(ours, np.dtype(np.uint16)).encode(pa.array([], pa.string()))
    assert len(none) == len(no_ends) == 0


def changed(**parts: Any) -> bytes:
    """The GPT-2 form with other parts."""
    made = make_tokenizer("gpt2")
    for name, part in parts.items():
        setattr(made, name, part)
    return made.to_str().encode()


def of_model(**fields: Any) -> bytes:
    content = json.loads(make_tokenizer("gpt2").to_str())
    return json.dumps(content | {"model": content["model"] | fields}).encode()


def with_tokens(form: str, *tokens: AddedToken) -> bytes:
    made = make_tokenizer(form)
    made.add_tokens(list(tokens))
    return made.to_str().encode()


def word_piece() -> bytes:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str().encode()


def words_alone() -> bytes:
    """Looks words up, and cuts at white space alone: "<pad>" is a word."""
    made = Tokenizer.from_str(of_model(ignore_merges=True).decode())
    made.pre_tokenizer = cuts.Sequence([cuts.Split(" ", "isolated"), cuts.ByteLevel(False, False, False)])
    return made.to_str().encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (word_piece, 'model.type is "WordPiece"'),
        (lambda: Tokenizer(models.Unigram()).to_str().encode(), 'model.type is "Unigram"'),
        (lambda: b"\x80", "tokenizer.json: cannot be read: "),
        (lambda: b"[]", "tokenizer.json: cannot be read: "),
        (lambda: of_model(merges=[["never", "seen"]]), "cannot be read: .*never"),
        (lambda: of_model(byte_fallback=True), "model.byte_fallback is true"),
        (lambda: of_model(dropout=0.1), "model.dropout is 0.1"),
        (lambda: of_model(vocab={"a": 0}, merges=[]), "255 of the 256 bytes have no piece"),
        (lambda: changed(pre_tokenizer=cuts.ByteLevel(add_prefix_space=True)), "add_prefix_space is true"),
        (lambda: changed(pre_tokenizer=cuts.Whitespace()), r'pre_tokenizer is \["Whitespace"\]'),
        (
            lambda: changed(pre_tokenizer=cuts.Sequence([cuts.Split(" ", "removed"), cuts.ByteLevel(False)])),
            'pre_tokenizer is "Split"; .* if they remove nothing',
        ),
        (
            lambda: changed(pre_tokenizer=cuts.Sequence([cuts.Metaspace(), cuts.ByteLevel(False)])),
            'pre_tokenizer is "Metaspace"',
        ),
        (lambda: changed(normalizer=normalizers.StripAccents()), 'normalizer is "StripAccents"'),
        (lambda: changed(decoder=decoders.Metaspace()), 'decoder is "Metaspace"'),
        (lambda: with_tokens("gpt2", AddedToken("<x>", rstrip=True)), "'<x>' takes white space off"),
        (lambda: with_tokens("gpt2", AddedToken("!", special=True)), "spells '!' could be read as"),
        (words_alone, "spells '<pad>' could be read as"),
    ],
)
def test_what_we_cannot_vouch_for_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        renumber_json(content(), {})
    assert "\n" not in str(refused.value)


def test_pieces_with_our_names_take_their_places_or_are_refused() -> None:
    content = with_tokens("gpt2", AddedToken("<pad>", special=True), AddedToken("<|user|>"))
    made = renumber_json(content, {EOS_ID: "<|endoftext|>"})
    assert [made.rows[id] for id in (EOS_ID, PAD_ID, USER_ID, BOS_ID)] == [376, 377, 378, None]
    ours = ByteLevelTokenizer(made.model)
    assert USER_ID not in ours.encode("<|user|>")
    by_ids = renumber_json(content, {EOS_ID: 376, BOS_ID: 1})  # of which 1 is no added piece
    assert [by_ids.rows[id] for id in (EOS_ID, BOS_ID)] == [376, None]
    clash = json.loads(content)
    clash["added_tokens"], clash["model"]["vocab"]["<eos>"] = [], 376
    with pytest.raises(ValueError, match="'<eos>', which means something else"):
        renumber_json(json.dumps(clash).encode(), {})
    with pytest.raises(ValueError, match="no piece '<x>' with the id 9"):
        renumber_json(content, {}, {9: "<x>"})


def test_pieces_of_the_model_are_not_the_tokenizers() -> None:
    content = with_tokens("gpt2", AddedToken("<mask>", special=True))
    made = renumber_json(content, {EOS_ID: "<|endoftext|>"}, model_pieces=["<mask>", "<more>"])
    assert made.rows[-2:] == [377, None]
    assert len(ByteLevelTokenizer(made.model)) == len(made.rows) - 2
