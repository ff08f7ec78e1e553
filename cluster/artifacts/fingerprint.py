"""Fingerprints: the identity of an artifact is what was asked for, not when, where or how it was made."""

import hashlib
import json
from typing import Any

VERSION_LENGTH = 12


def canonical_json(value: Any) -> bytes:
    """One byte string for one JSON value: keys sorted, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    ).encode()


def fingerprint(stage: str, logic_version: int, what: dict[str, Any], inputs: dict[str, str]) -> str:
    """Hex SHA-256 of a stage, its logic version, what it was asked for and its inputs' fingerprints."""
    identity = {"stage": stage, "logic_version": logic_version, "what": what, "inputs": inputs}
    return hashlib.sha256(canonical_json(identity)).hexdigest()
