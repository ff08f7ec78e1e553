"""The ids that every tokenizer of ours reserves.

They are SentencePiece *control* symbols: `encode` never yields them, whatever the text spells, so that a
user who types "<|assistant|>" cannot forge a turn. Only code that works with ids puts them into a sequence.
"""

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID = 4, 5, 6, 7

STOP_IDS = (EOS_ID, END_ID)
"""Each of them ends what a model generates, be it sampled for training, graded or served: a document's end
and a turn's.
"""

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
CHAT_SYMBOLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

SPECIAL_PIECES = (PAD, UNK, BOS, EOS, *CHAT_SYMBOLS)
"""Pieces in the order of their ids: `SPECIAL_PIECES[END_ID] == "<|end|>"`."""

FIRST_BYTE_ID = len(SPECIAL_PIECES)
BYTE_PIECES = 256
"""Byte fallback adds the pieces <0x00> … <0xFF>, right after the special ones."""

MIN_VOCAB_SIZE = FIRST_BYTE_ID + BYTE_PIECES
