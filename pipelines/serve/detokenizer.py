"""From token ids to text, a few tokens at a time."""

import codecs

from llm.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """Yields text as soon as its characters are whole: a token may be one byte of a character.

    All calls' texts together equal `decode_bytes` of all ids together, with U+FFFD for what is no UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: list[int], final: bool = False) -> str:
        """The text that these ids complete; with `final`, also what is left of an unfinished character."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids), final)


class StopStrings:
    """Ends a text before the first occurrence of any of some strings, wherever the pieces' borders are.

    Text that may be the beginning of a stop string is held back until it is clear.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, text: str, final: bool = False) -> str:
        """The text that can be shown now. After `found`, nothing more."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for; its name if it is a special one."""
    name = tokenizer.special_name(token)
    return tokenizer.decode_bytes([token]) if name is None else name.encode()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The token as a string that tells it from all others: `bytes:\\xe2` for a part of a character."""
    raw = token_bytes(tokenizer, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
