"""One spelling for one text: Unicode NFC, "\\n" newlines, no control characters."""

import re
import unicodedata

# C0 and C1 controls but tab and newline; surrogates, which are no text; the byte order mark.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]")


def normalise(text: str) -> str:
    """Normalise line ends and Unicode (NFC), drop control characters; spaces and tabs stay as they are.

    Idempotent: normalise(normalise(x)) == normalise(x). Unicode Annex 15.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _UNWANTED.sub("", text))
