"""Secrets never reach an artifact, a log or the terminal."""

import re
from typing import Any

REDACTED = "[redacted]"

_SECRET_NAME = re.compile(
    r"(api|access|account|auth|encryption|master|private|secret|signing|ssh)_?keys?$"
    r"|access_?key_?id$"
    r"|(secrets?|passwords?|passwd|pwd|passphrases?|credentials?|authorization|cookies?)$"
    r"|(^|_)token$"
    r"|(^|_)(access|api|auth|bearer|refresh|session)_tokens$"
)
_TEXT_TOKEN = re.compile(r"(^|_)(bos|cls|end|eos|mask|next|pad|per|sep|special|start|stop|unk)_token$")
"""Tokens that are text. Those that are counted (`max_tokens`, `token_ids`) are no secret's name anyway."""
_SECRET_PARAMETER = re.compile(r"(^|_)(sig|signature|credential)$")
"""Of a signed URL."""

_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]+(?=@)")
_USER_ALONE = re.compile(r"(?<=http://)[^/@\s]+(?=@)|(?<=https://)[^/@\s]+(?=@)")
"""Where it may be an access token: nobody has to say who they are to read a page."""
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
_BASIC = re.compile(r"\b((?i:basic)\s+)(?=\S+[A-Z0-9=])[\w.~+/=-]{8,}")
"""Base64: what has neither capitals nor digits is English."""
_NAMED = re.compile(
    r"(?<![\w.-])(?:"
    r"(?P<name>[\w.-]+)(?P<sign>\\*[\"']?[ \t]*(?::=|[:=])(?![:=])[ \t]*)"
    r"|(?P<option>--?[\w-]+)(?:[\"'],)?[ \t]+(?!-)"
    r")"
)
"""What a value follows: in a query, a command, an environment, a header, JSON, YAML or Python."""
_VALUE = re.compile(
    r"(?P<quote>\\*[\"'])(?P<quoted>(?:\\.|[^\\\n])*?)(?P=quote)"
    r"|(?:(?i:basic|bearer|token)[ \t]+)?\\*[\"']?[^\s&;#'\",]+"
)


def redact(value: Any, name: str = "") -> Any:
    """A copy of a JSON value in which secrets are masked: texts under secret-like names, credentials in URLs
    (also signatures and tokens in their queries), and what follows a secret-like name within a text.
    """
    if isinstance(value, dict):
        return {key: redact(item, name if is_secret_name(name) else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if is_secret_name(name):
            return [redact(item, name) for item in value]
        before = ("", *value)
        return [redact(item, _option(option) or name) for option, item in zip(before, value, strict=False)]
    if isinstance(value, str):
        return REDACTED if value and is_secret_name(name) else _redact_text(value)
    return value


def _option(argument: Any) -> str:
    """`hf-token` of `--hf-token`, whose value is the next argument of a command; else nothing."""
    found = re.fullmatch(r"--?([\w-]+)", argument) if isinstance(argument, str) else None
    return found[1] if found else ""


def is_secret_name(name: str) -> bool:
    """Whether a field, variable or header of this name holds a secret: `hf_token`, `secretAccessKey`."""
    words = _words(name)
    return bool(_SECRET_NAME.search(words)) and not _TEXT_TOKEN.search(words)


def _redact_text(text: str) -> str:
    text = _USER_AND_PASSWORD.sub(REDACTED, text)
    text = _USER_ALONE.sub(REDACTED, text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    text = _BASIC.sub(rf"\1{REDACTED}", text)
    return _redact_named(text)


def _redact_named(text: str) -> str:
    parts, done = [], 0
    for match in _NAMED.finditer(text):
        if match.start() < done or not _announces_secret(match):
            continue
        value = _VALUE.match(text, match.end())
        if value is None or value["quoted"] == "":
            continue
        quote = value["quote"] or ""
        parts += [text[done : match.end()], quote, REDACTED, quote]
        done = value.end()
    return "".join([*parts, text[done:]])


def _announces_secret(match: re.Match[str]) -> bool:
    name = match["name"] or match["option"]
    is_parameter = match["sign"] == "=" and _SECRET_PARAMETER.search(_words(name))
    return is_secret_name(name) or bool(is_parameter)


def _words(name: str) -> str:
    """`X-Amz-Signature` and `apiKey` as `x_amz_signature` and `api_key`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_").lower()
