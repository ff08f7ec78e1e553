"""How a profile of a run under way is asked for: by files in the folder of the model that it makes, which the
run sees wherever it goes on.

    profiles/request.json      what is wanted, until it is made
    profiles/ID.json           the answer, until whoever asked has read it
"""

import json
import uuid
from typing import Any

from cluster.artifacts.folder import Folder
from cluster.errors import UserError
from llm.training.profile_window import PROFILES, Profile, ProfileRequest

_REQUEST = f"{PROFILES}/request.json"


def ask(folder: Folder, steps: int, all_ranks: bool) -> ProfileRequest:
    """Leave a request. Raises UserError if there is one already."""
    request = ProfileRequest(uuid.uuid4().hex, steps, all_ranks)
    if not folder.create(_REQUEST, json.dumps(request.word()).encode()):
        raise UserError(
            f"{folder}: a profile is being made for somebody else; wait for it, or remove {_REQUEST} there"
        )
    return request


def withdraw(folder: Folder) -> None:
    """Remove the request."""
    folder.delete([_REQUEST])


def wanted(folder: Folder) -> ProfileRequest | None:
    """The request, if there is one that can be read."""
    try:
        return ProfileRequest.of(json.loads(folder.read(_REQUEST)))
    except (OSError, UserError, ValueError, TypeError):  # None, or storage that is away for a while.
        return None


def answer(folder: Folder, profile: Profile) -> str:
    """Say that a profile was made, to whoever asked; returns what is said."""
    last = profile.first + profile.request.steps - 1
    text = f"steps {profile.first} to {last} are in {folder}/{PROFILES}/{profile.folder.name}"
    folder.write(_answer(profile.request), json.dumps({"said": text}).encode())
    folder.delete([_REQUEST])
    return text


def answered(folder: Folder, request: ProfileRequest) -> str | None:
    """What was said to a request, if it was."""
    try:
        said: dict[str, Any] = json.loads(folder.read(_answer(request)))
    except FileNotFoundError:
        return None
    folder.delete([_answer(request)])
    return str(said["said"])


def _answer(request: ProfileRequest) -> str:
    return f"{PROFILES}/{request.id}.json"
