"""Encodes one piece of the corpus into shards of its own, one set per split."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from llm.data.shards import ShardWriter, token_dtype
from llm.tokenizer.documents import DocumentEncoder
from llm.tokenizer.load import MODEL_FILE, load_tokenizer
from pipelines.tokens.reuse import PREFIX

SPLITS = ("train", "heldout")
_BATCH_DOCUMENTS = 256


class EncodeWorker:
    """Runs in an actor, on one thread; a unit's record lists its shards by split."""

    def __init__(self, corpus: Artifact, tokenizer: Artifact, target: Folder, text_bytes: int) -> None:
        """text_bytes: how much text this actor is likely to get."""
        self._corpus, self._target = corpus, target
        self._tokenizer = load_tokenizer(tokenizer.fetch(MODEL_FILE))
        dtype = token_dtype(self._tokenizer.vocab_size)
        self._encoder = DocumentEncoder(self._tokenizer, dtype, expected=text_bytes)

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        unit = unit_id.removeprefix(PREFIX)
        tokenizer = self._tokenizer
        groups = list(range(payload["first"], payload["last"]))
        with self._target.writing() as writing, ExitStack() as stack:
            source = pq.ParquetFile(stack.enter_context(self._corpus.open(payload["file"])))
            writers = {
                split: stack.enter_context(
                    ShardWriter(writing.path, split, unit, tokenizer.vocab_size, tokenizer.eos_id)
                )
                for split in SPLITS
            }
            for batch in source.iter_batches(_BATCH_DOCUMENTS, row_groups=groups, columns=["text", "split"]):
                for split, writer in writers.items():
                    texts = batch["text"].filter(pc.equal(batch["split"], split))
                    ids, ends = self._encoder.encode(texts)
                    writer.add_documents(ids, ends, pc.binary_length(texts).to_numpy())
        shards = {split: [asdict(shard) for shard in writer.shards] for split, writer in writers.items()}
        return {"files": writing.files, "shards": shards}
