"""Span corruption, T5's objective: the encoder reads a text with holes, the decoder says what was in them.

    raw       Thank you for inviting me to your party last week
    inputs    Thank you <0> me to your party <1> <eos>
    targets   <0> for inviting <1> last week <eos>

(Raffel et al. 2020, arXiv:1910.10683, §3.1.4, and `random_spans_noise_mask` of its code.) How much is noise
depends on the length alone, so that every row gives inputs and targets of one length, without padding:

    noise      = round(raw_len · noise_density)       from 1 to raw_len − 1
    spans      = round(noise / mean_span_length)      from 1 to raw_len − noise
    input_len  = raw_len − noise + spans + 1          one sentinel a span, and <eos>
    target_len = noise + spans + 1

The noise is cut into `spans` parts and so is the rest, each way of cutting being equally likely; the parts
alternate, beginning with text and ending with noise. There is no sentinel after the last span.
"""

from dataclasses import dataclass

import numpy as np

from llm.data.draws import draws


@dataclass(frozen=True)
class SpanCorruption:
    """How much of a text is noise. Raises ValueError for what cannot be."""

    noise_density: float = 0.15
    """The part of the tokens that is noise, between 0 and 1."""
    mean_span_length: float = 3.0
    """Tokens of a span of noise, at least 1."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise ValueError(f"a noise density of {self.noise_density}: it must lie between 0 and 1")
        if not 1 <= self.mean_span_length < float("inf"):
            raise ValueError(f"a mean span length of {self.mean_span_length}: it must be a number from 1 on")

    def noise(self, raw_len: int) -> int:
        """Tokens of noise in a text of `raw_len`. Raises ValueError if that is below 2."""
        if raw_len < 2:
            raise ValueError(f"a text of {raw_len} tokens cannot be corrupted: it takes 2 at least")
        return min(max(round(raw_len * self.noise_density), 1), raw_len - 1)

    def sentinels(self, raw_len: int) -> int:
        """Spans of noise in a text of `raw_len`, each of which needs a sentinel of its own."""
        noise = self.noise(raw_len)
        return min(max(round(noise / self.mean_span_length), 1), raw_len - noise)

    def lengths(self, raw_len: int) -> tuple[int, int]:
        """(input_len, target_len) that a text of `raw_len` ≥ 2 tokens gives."""
        noise, spans = self.noise(raw_len), self.sentinels(raw_len)
        return raw_len - noise + spans + 1, noise + spans + 1

    def raw_len(self, input_len: int) -> int:
        """The longest text whose inputs fit `input_len` ≥ 3: the inputs never shrink as the text grows."""
        if input_len < 3:
            raise ValueError(f"inputs of {input_len} tokens: those of the shortest text, of 2 tokens, have 3")
        raw_len = input_len - 1  # which fits, for no span is shorter than its sentinel
        while self.lengths(raw_len + 1)[0] <= input_len:
            raw_len += 1
        return raw_len


def corrupt_spans(
    rows: np.ndarray,
    first_sample: int,
    corruption: SpanCorruption,
    *,
    seed: int,
    first_sentinel_id: int,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (samples, input_len) and targets (samples, target_len), int64: see `SpanCorruption.lengths`.

    rows: (samples, raw_len) int64, the samples from `first_sample` on. What a row gives depends on it, its
    number and the seed, and not on the other rows. The k-th span's sentinel is `first_sentinel_id` - k, as in
    T5's vocabulary, where <extra_id_0> is the last token. None of them may be a token of a text.
    """
    samples, raw_len = rows.shape
    noise, spans = corruption.noise(raw_len), corruption.sentinels(raw_len)
    text_parts = _parts(draws(seed, "text parts", first_sample, samples, raw_len - noise - 1), spans)
    noise_parts = _parts(draws(seed, "noise parts", first_sample, samples, noise - 1), spans)

    parts = np.stack((text_parts, noise_parts), axis=2).reshape(samples, 2 * spans)
    begins = np.zeros(rows.shape, dtype=bool)
    begins[:, 0] = True
    np.put_along_axis(begins, np.cumsum(parts, axis=1)[:, :-1], True, axis=1)
    part = np.cumsum(begins, axis=1) - 1
    is_noise = part % 2 == 1

    # Inputs and targets are each other's mirror: a part that one of them lacks has left its sentinel there.
    marked = np.where(begins, first_sentinel_id - part // 2, rows)
    input_len, target_len = corruption.lengths(raw_len)
    inputs = np.full((samples, input_len), eos_id, dtype=np.int64)
    targets = np.full((samples, target_len), eos_id, dtype=np.int64)
    inputs[:, :-1] = np.where(is_noise, marked, rows)[begins | ~is_noise].reshape(samples, input_len - 1)
    targets[:, :-1] = np.where(is_noise, rows, marked)[begins | is_noise].reshape(samples, target_len - 1)
    return inputs, targets


def _parts(draws: np.ndarray, parts: int) -> np.ndarray:
    """(rows, parts) int64: for each row of draws (rows, n - 1), n cut into parts of at least 1.

    The places of the least parts - 1 draws are where it is cut: any set of places is equally likely.
    """
    cuts = np.sort(np.argsort(draws, axis=1)[:, : parts - 1], axis=1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=draws.shape[1] + 1)
