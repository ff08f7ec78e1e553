"""Raw inputs in a bucket: an object, what a prefix holds, or what a glob matches. One listing an argument."""

import glob
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from cluster.artifacts.remote_file import RemoteFile
from cluster.artifacts.s3_storage import S3Storage
from cluster.errors import UserError
from llm.text.readers import format_of

Found = tuple[RemoteFile, str, int, str]
"""File, source, bytes, identity of the content."""


def find_in_bucket(argument: str, is_one_of_many: bool) -> list[Found]:
    """Every object that a key, a prefix or a glob of a bucket stands for; UserError if there is none."""
    url = urlsplit(argument, allow_fragments=False)
    pattern = (url.path + (f"?{url.query}" if url.query else "")).strip("/")
    if not url.netloc:
        raise UserError(f"--paths {argument}: no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
    storage = S3Storage.from_environment(url.netloc, "")
    if glob.has_magic(pattern):
        root = _fixed_part(pattern)
        parts, below = pattern.split("/"), storage.etags(root)
        chosen = {key: each for key, each in below.items() if _matches(key.split("/"), parts)}
    else:
        root, chosen = pattern, {}
        single = storage.etag(pattern) if pattern else None
        if single is not None:
            root, chosen = pattern.rpartition("/")[0], {pattern: single}
        else:
            inside = storage.etags(pattern)
            chosen = {key: each for key, each in inside.items() if _is_readable(key, pattern, storage)}
            if is_one_of_many:  # folders may hold files of one name
                root = pattern.rpartition("/")[0]
    if not chosen:
        raise UserError(f"--paths {argument}: no such object or prefix, and no match for the glob")
    start = len(root) + 1 if root else 0
    return [
        (RemoteFile(storage, key), key[start:], size, f"{etag}/{size}")
        for key, (size, etag) in chosen.items()
        if not key.endswith("/")
    ]


def _is_readable(key: str, folder: str, storage: S3Storage) -> bool:
    is_hidden = any(part.startswith(".") for part in key.removeprefix(f"{folder}/").split("/"))
    return format_of(RemoteFile(storage, key)) is not None and not is_hidden


def _fixed_part(pattern: str) -> str:
    """The folders before the first wildcard."""
    fixed = []
    for part in pattern.split("/")[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return "/".join(fixed)


def _matches(names: list[str], parts: list[str]) -> bool:
    """Whether a glob on a disk would find it: `*`, `?` and `[...]` stay within a folder, `**` crosses any
    number of them, and none of them finds what is hidden.
    """
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    is_hidden = names[0].startswith(".")
    if parts[0] == "**":
        return (not is_hidden and _matches(names[1:], parts)) or _matches(names, parts[1:])
    fits = fnmatchcase(names[0], parts[0]) and (not is_hidden or parts[0].startswith("."))
    return fits and _matches(names[1:], parts[1:])
