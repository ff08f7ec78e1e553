"""The tokenizer's half of a Hugging Face directory: SentencePiece model, special tokens, chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

# What llm/tokenizer/chat.py builds in ids, as the template language has it; a test holds them together.
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEMPLATE_PIECES = ("<bos>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def export_tokenizer(model_file: Path, out_dir: Path, special_ids: dict[str, int], max_length: int) -> None:
    """Copy `tokenizer.model` and write tokenizer_config.json beside it.

    `special_ids` are entries such as {"eos_token_id": 3}; their pieces become "eos_token" and so on. The chat
    template goes along if the tokenizer has the pieces that it needs.
    """
    shutil.copyfile(model_file, out_dir / "tokenizer.model")
    specification = ModelProto.FromString(model_file.read_bytes())
    processor = SentencePieceProcessor(model_file=str(model_file))
    control = [
        piece
        for i in range(len(processor))
        if processor.is_control(i) and (piece := processor.id_to_piece(i))
    ]
    named = {name.removesuffix("_id"): processor.id_to_piece(token) for name, token in special_ids.items()}
    config: dict[str, Any] = {
        "add_prefix_space": specification.normalizer_spec.add_dummy_prefix,
        "legacy": False,
        "model_max_length": max_length,
        "add_bos_token": False,
        "add_eos_token": False,
        "unk_token": processor.id_to_piece(processor.unk_id()),
        "additional_special_tokens": [piece for piece in control if piece not in named.values()],
        "clean_up_tokenization_spaces": False,
    } | named
    if all(piece in control for piece in _TEMPLATE_PIECES):
        config["chat_template"] = CHAT_TEMPLATE
    (out_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
