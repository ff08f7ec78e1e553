"""What each family of models learns from the samples of the token stream.

    decoder           next token         what comes after each token
    encoder-decoder   corrupted spans    what stood in the holes of a text    (T5: `llm.data.span_corruption`)
    encoder           masked tokens      which tokens of a text are hidden    (BERT: `llm.data.masked_tokens`)

An objective is a function of samples and their place in the stream, and of nothing else: any number of ranks
and micro-batches makes the same of a sample, and so does a run that was resumed.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llm.data.masked_tokens import mask_tokens
from llm.data.span_corruption import SpanCorruption, corrupt_spans
from llm.tokenizer.special import EOS_ID, FIRST_BYTE_ID, PAD_ID, mask_id, sentinel_id
from llm.training.loss import IGNORE, next_token_targets
from llm.training.step import MicroBatch

Objective = Callable[[np.ndarray, int], MicroBatch]
"""(rows (samples, window) int64, number of the first in the stream) -> what the model's `forward` takes, in
its order, and last the targets.
"""


def next_token(rows: np.ndarray, first_sample: int) -> MicroBatch:
    """(tokens, targets), both (samples, window): every token but the first is predicted."""
    tokens = torch.from_numpy(rows)
    return tokens, next_token_targets(tokens)


def corrupted_spans(corruption: SpanCorruption, *, seed: int, text_ids: int, multiple: int = 1) -> Objective:
    """(inputs (samples, input_len), tokens, targets), the last two (samples, target_len).

    The decoder begins with <pad>, as T5's does, and is then given each target before the one it predicts. Its
    rows are filled up to a multiple of `multiple`, with padding that predicts nothing; otherwise there is
    none.
    """

    def objective(rows: np.ndarray, first_sample: int) -> MicroBatch:
        inputs, targets = corrupt_spans(
            rows,
            first_sample,
            corruption,
            seed=seed,
            first_sentinel_id=sentinel_id(text_ids, 0),
            eos_id=EOS_ID,
        )
        missing = -targets.shape[1] % multiple
        tokens = np.pad(targets[:, :-1], ((0, 0), (1, missing)), constant_values=PAD_ID)
        targets = np.pad(targets, ((0, 0), (0, missing)), constant_values=IGNORE)
        return _tensors(inputs, tokens, targets)

    return objective


def masked_tokens(mask_rate: float, *, seed: int, text_ids: int) -> Objective:
    """(tokens, targets), both (samples, window): targets are `IGNORE` where nothing is masked.

    No special token is: <eos>, which stands between documents, is always seen.
    """

    def objective(rows: np.ndarray, first_sample: int) -> MicroBatch:
        shown, targets = mask_tokens(
            rows,
            first_sample,
            seed=seed,
            mask_id=mask_id(text_ids),
            special_ids=FIRST_BYTE_ID,
            vocab_size=text_ids,
            mask_rate=mask_rate,
        )
        return _tensors(shown, targets)

    return objective


def _tensors(*arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, arrays))
