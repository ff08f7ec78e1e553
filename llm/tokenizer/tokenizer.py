"""What every tokenizer of ours can do, whichever library cuts the text."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from llm.tokenizer.special import BOS_ID, END_ID, EOS_ID, PAD_ID


class Tokenizer(ABC):
    """Text to ids and back, with our special ids (llm/tokenizer/special.py).

    A lone surrogate is no text: encoding one raises UnicodeEncodeError.
    """

    pad_id, bos_id, eos_id, end_id = PAD_ID, BOS_ID, EOS_ID, END_ID
    model: bytes
    """The content of its file: all that it is made from."""
    vocab_size: int
    is_lossless: bool
    """Whether a text is encoded as it is: decode(encode(text)) == text."""

    def __init__(self, model: bytes):
        self.model = model

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file: equal fingerprints encode equally."""
        return hashlib.sha256(self.model).hexdigest()

    def __len__(self) -> int:
        return self.vocab_size

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return type(self), (self.model,)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of the text, without <bos> or <eos>; never a special id, whatever the text spells."""

    @abstractmethod
    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text as int32 arrays: no code of ours per token."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of the ids. One id may be a part of a character: join before decoding."""

    @abstractmethod
    def special_name(self, id: int) -> str | None:
        """The name of a special piece, ours or another; None for a piece of text."""

    @abstractmethod
    def normalised(self, text: str) -> str:
        """What `decode(encode(text))` should give: the text itself, or what the model's rules make of it."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ids are left out, bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
