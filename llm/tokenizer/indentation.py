"""Lets SentencePiece learn newline-plus-indentation as one piece.

SentencePiece allows its space symbol ▁ at the beginning of a piece only, and no tab anywhere, so that it
cannot learn "\\n" followed by spaces: the most frequent string of any program. We train on text in which the
spaces after a newline, and all tabs, are stand-in characters, and put the real ones back into the finished
model. Encoding needs no trick: SentencePiece merges whatever its vocabulary holds.

On Python source at 2,048 pieces this gives 3.35 bytes per token in place of 3.14 (whole documents) or 2.82
(line by line, as spm_train reads a file).
"""

import re

from sentencepiece import sentencepiece_model_pb2 as proto

SPACE_SYMBOL = "\u2581"
INDENT = "\ufdd0"  # noncharacters: Unicode promises that no text to be interchanged holds them
TAB = "\ufdd1"

_INDENTATION = re.compile(r"(?<=\n) +")
_NORMAL = proto.ModelProto.SentencePiece.NORMAL
_BPE = proto.TrainerSpec.BPE


def hide_indentation(text: str) -> str:
    """The text to train on: spaces after a newline become INDENT, tabs become TAB."""
    return _INDENTATION.sub(lambda run: INDENT * len(run.group()), text).replace("\t", TAB)


def reveal_indentation(model: bytes, vocab_size: int) -> bytes:
    """Put spaces and tabs back into a model trained on hidden text, and cut it to `vocab_size` pieces.

    Two pieces can become one ("▁▁" and a run of two INDENT): the better score stays. Single characters all
    stay, so that coverage is kept; the worst-scored longer pieces go. The result has fewer than `vocab_size`
    pieces when the model had too few.
    """
    trained = proto.ModelProto.FromString(model)
    reserved = [piece for piece in trained.pieces if piece.type != _NORMAL]

    best: dict[str, float] = {}
    for piece in trained.pieces:
        if piece.type == _NORMAL:
            text = piece.piece.replace(INDENT, SPACE_SYMBOL).replace(TAB, "\t")
            best[text] = max(piece.score, best.get(text, float("-inf")))
    ranked = sorted(best, key=lambda text: -best[text])  # stable: equal scores keep the trainer's order

    room = vocab_size - len(reserved) - sum(len(text) == 1 for text in ranked)
    longer = [text for text in ranked if len(text) > 1][: max(room, 0)]
    kept = set(longer)
    ranked = [text for text in ranked if len(text) == 1 or text in kept]

    is_bpe = trained.trainer_spec.model_type == _BPE  # a BPE score is the rank of the merge, with no gaps
    del trained.pieces[:]
    trained.pieces.extend(reserved)
    for rank, text in enumerate(ranked):
        trained.pieces.add(piece=text, score=-float(rank) if is_bpe else best[text])
    trained.trainer_spec.vocab_size = len(trained.pieces)
    return trained.SerializeToString(deterministic=True)
