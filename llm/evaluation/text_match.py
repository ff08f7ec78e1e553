"""Answers against references: exact match and BLEU.

    exact match    answers that are their reference, white space at either end aside / all
    BLEU           BP · exp(¼ Σ_{n=1…4} ln p_n)        over the whole set    (Papineni et al., 2002)
                   p_n: the share of the answers' n-grams that are the references' too
                   BP = min(1, exp(1 − words of references / words of answers))

BLEU is sacrebleu's (Post, 2018, arXiv:1804.08771), from 0 to 100. What it is depends on how text is cut into
words and on smoothing: its signature says so, and figures compare where signatures are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm.evaluation.win_rate import Proportion, proportion

BleuTokenizer = Literal["13a", "intl", "char", "zh", "none"]


@dataclass(frozen=True)
class TextMatch:
    """What came of a set."""

    exact: Proportion
    bleu: float
    signature: str
    """sacrebleu's, of the BLEU."""


def text_match(
    answers: Sequence[str], references: Sequence[str], tokenizer: BleuTokenizer = "13a"
) -> TextMatch:
    """`answers[i]` against `references[i]`. Raises ValueError if the two are empty or of unlike lengths."""
    from sacrebleu.metrics import BLEU  # type: ignore[import-untyped]

    pairs = list(zip(answers, references, strict=True))
    if not pairs:
        raise ValueError("no answers to compare")
    exact = sum(answer.strip() == reference.strip() for answer, reference in pairs)
    bleu = BLEU(tokenize=tokenizer)
    score = bleu.corpus_score(list(answers), [list(references)]).score
    return TextMatch(proportion(exact, len(pairs)), score, str(bleu.get_signature()))
