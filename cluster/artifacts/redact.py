"""Secrets never reach an artifact, a log or the terminal."""

import re
from typing import Any

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(r"(api_?keys?|secrets?|passwords?|passwd|credentials?|(^|_)token)$", re.IGNORECASE)
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def redact(value: Any, name: str = "") -> Any:
    """A copy of a JSON value in which texts under secret-like names and credentials in URLs are masked."""
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if isinstance(value, str):
        if value and _SECRET_NAME.search(name):
            return REDACTED
        return _CREDENTIALS_IN_URL.sub(REDACTED, value)
    return value
