"""Exact match by hand; BLEU against its formula, written out for words between spaces."""

import math
from collections import Counter

import pytest

from llm.evaluation.text_match import text_match

REFERENCES = ["the cat sat on the mat", "return the file position", "close it", "a b c d e f g h"]
ANSWERS = ["the cat sat on a mat today", "return the current file position", " close it\n", "a b d c e f g h"]


def formula(answers, references):
    """No smoothing: every order has a match here."""
    matches, totals = [0] * 4, [0] * 4
    for answer, reference in zip(answers, references, strict=True):
        a, r = answer.split(), reference.split()
        for n in range(1, 5):
            ours, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (a, r))
            matches[n - 1] += sum((ours & theirs).values())
            totals[n - 1] += sum(ours.values())
    words, wanted = (sum(len(each.split()) for each in side) for side in (answers, references))
    precision = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4
    return 100 * min(1, math.exp(1 - wanted / words)) * math.exp(precision)


def test_bleu_is_the_formula_and_says_what_it_is():
    found = text_match(ANSWERS, REFERENCES)
    assert found.bleu == pytest.approx(formula(ANSWERS, REFERENCES), rel=1e-9)
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    shorter = [answer.rsplit(" ", 2)[0] for answer in REFERENCES[:2]]
    found = text_match(shorter, REFERENCES[:2], "none")
    assert found.bleu == pytest.approx(formula(shorter, REFERENCES[:2]), rel=1e-9), "shorter is dearer"
    assert "tok:none" in found.signature
    assert text_match(REFERENCES, REFERENCES).bleu == pytest.approx(100)


def test_an_exact_match_overlooks_space_around_it_and_nothing_else():
    exact = text_match(ANSWERS, REFERENCES).exact
    assert (exact.value, exact.n) == (0.25, 4)
    assert 0 < exact.low < 0.25 < exact.high
    assert text_match(["Close it"], ["close it"]).exact.value == 0
    with pytest.raises(ValueError, match="shorter"):
        text_match(["a"], [])
    with pytest.raises(ValueError, match="no answers"):
        text_match([], [])
