"""The ids that every tokenizer of ours reserves.

They are SentencePiece *control* symbols: `encode` never yields them, whatever the text spells, so that a
user who types "<|assistant|>" cannot forge a turn. Only code that works with ids puts them into a sequence.
"""

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID = 4, 5, 6, 7

STOP_IDS = (END_ID, EOS_ID)
"""Each of them ends what a model generates, be it sampled for training, graded or served: a turn's end and a
document's.
"""


def special_ids(*, chats: bool) -> dict[str, int | list[int]]:
    """What begins, ends and pads a text, by transformers' names. A chat model ends with either of `STOP_IDS`,
    another one with the document.
    """
    ends = list(STOP_IDS) if chats else EOS_ID
    return {"bos_token_id": BOS_ID, "eos_token_id": ends, "pad_token_id": PAD_ID}


PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
CHAT_SYMBOLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

SPECIAL_PIECES = (PAD, UNK, BOS, EOS, *CHAT_SYMBOLS)
"""Pieces in the order of their ids: `SPECIAL_PIECES[END_ID] == "<|end|>"`."""

FIRST_BYTE_ID = len(SPECIAL_PIECES)
BYTE_PIECES = 256
"""Byte fallback adds the pieces <0x00> … <0xFF>, right after the special ones."""

MIN_VOCAB_SIZE = FIRST_BYTE_ID + BYTE_PIECES

SENTINELS = 100
"""What T5's vocabulary has: as many spans can be left out of one text."""

ADDED_PIECES: dict[str, tuple[str, ...]] = {
    "decoder": (),
    "encoder-decoder": tuple(f"<extra_id_{span}>" for span in reversed(range(SENTINELS))),
    "encoder": ("<mask>",),
}
"""Pieces that models of a family have after those of their tokenizer, in the order of their ids.

They are the model's and not the tokenizer's: tokenizers and token shards serve all families, and no text can
spell them. Hugging Face's T5 has its sentinels in the same places.
"""


def sentinel_id(text_ids: int, span: int) -> int:
    """Id of "<extra_id_{span}>" in a model whose tokenizer has `text_ids` pieces: the first one is the last
    id.
    """
    return text_ids + SENTINELS - 1 - span


def mask_id(text_ids: int) -> int:
    """Id of "<mask>" in a model whose tokenizer has `text_ids` pieces."""
    return text_ids
