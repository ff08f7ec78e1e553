"""Masked tokens, BERT's objective: some tokens are hidden, and the encoder says what they were.

    masked = round(mask_rate · ordinary tokens of the row), any of them equally likely
    of these, each on its own: 80 % become <mask>, 10 % an ordinary token at random, 10 % stay

(Devlin et al. 2019, arXiv:1810.04805, §3.1.) Masks belong to a sample's number in the global stream, so that
each epoch hides other tokens of a text (Liu et al. 2019, arXiv:1907.11692, §4.1: dynamic masking).
"""

import numpy as np

from llm.data.draws import draws

IGNORE = -100
"""Target of a token that is not masked, as in `llm.training.loss`."""

_NEVER = np.uint64(2**64 - 1)


def mask_tokens(
    rows: np.ndarray,
    first_sample: int,
    *,
    seed: int,
    mask_id: int,
    special_ids: int,
    vocab_size: int,
    mask_rate: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, both (samples, seq_len) int64; targets are `IGNORE` where nothing is masked.

    rows: (samples, seq_len) int64, the samples from `first_sample` on. What a row gives depends on it, its
    number and the seed, and not on the other rows. Ids below `special_ids` are never masked and never drawn;
    ordinary ones are those from there up to `vocab_size`. Raises ValueError if `mask_id` is one of them, or
    `mask_rate` not in (0, 1].
    """
    if special_ids <= mask_id < vocab_size:
        raise ValueError(f"mask id {mask_id} is an ordinary token: take one below {special_ids} or a new one")
    if not 0 < mask_rate <= 1:
        raise ValueError(f"a mask rate of {mask_rate}: it must be above 0 and at most 1")
    ordinary = rows >= special_ids
    amounts = np.rint(mask_rate * ordinary.sum(axis=1)).astype(np.int64)
    places = draws(seed, "masked places", first_sample, *rows.shape)
    by_draw = np.argsort(np.where(ordinary, places, _NEVER), axis=1)
    masked = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(masked, by_draw, np.arange(rows.shape[1]) < amounts[:, None], axis=1)

    draw, fate = np.divmod(draws(seed, "mask or token", first_sample, *rows.shape), np.uint64(10))
    token = special_ids + (draw % np.uint64(vocab_size - special_ids)).astype(np.int64)
    shown = np.where(fate < 8, mask_id, np.where(fate < 9, token, rows))
    return np.where(masked, shown, rows), np.where(masked, rows, IGNORE)
