"""What a Hugging Face directory holds that is imported: its files, their identity, and special ids."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cluster.artifacts.files import sha256_file
from cluster.errors import UserError
from llm.models.hugging_face.weight_files import weight_files

CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def find_directory(given: str) -> Path:
    """The folder; raises UserError if there is none."""
    directory = Path(given).expanduser().absolute()
    if not directory.is_dir():
        raise UserError(
            f"{given}: there is no such folder here; fetch a model first, as with "
            "`hf download OWNER/MODEL --local-dir DIR`"
        )
    if not (directory / CONFIGS[0]).is_file():
        raise UserError(f"{given}: there is no {CONFIGS[0]} in it; give the folder with the model's files")
    return directory


def identity(directory: Path) -> dict[str, Any]:
    """Files that are read, their bytes, and one SHA-256 of their names and contents."""
    names = [name for name in (*CONFIGS, *TOKENIZER_FILES) if (directory / name).is_file()]
    files = sorted({directory / name for name in names} | set(weight_files(directory)))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return {
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": digest.hexdigest(),
    }


def special_ids(directory: Path) -> dict[str, Any]:
    """Ids that begin, end and pad a text, where the directory says; an end can be a list."""
    said: dict[str, Any] = {}
    for name in CONFIGS:
        said |= json_object(directory / name)
    return {name: said[name] for name in _SPECIAL_IDS if said.get(name) is not None}


def json_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises UserError if it is something else."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content
