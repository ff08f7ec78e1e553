"""Samples grow with their shares, document by document, and have the bytes that were asked for."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.text.identity import content_id
from pipelines.tokenizer.choice import ALL, Choice, fractions_of_shares, nearest

paths = st.lists(st.sampled_from(["a", "b", "ab", "=", "c,d"]), min_size=1, max_size=4).map("/".join)


@given(source=paths, names=st.sets(paths))
def test_the_lowest_folder_that_is_named_counts(source: str, names: set[str]) -> None:
    parts = source.split("/")
    above = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
    assert nearest(source, names) == next((folder for folder in above if folder in names), None)
    assert nearest(source, names | {ALL}) == next((folder for folder in above if folder in names), ALL)


@given(small=st.floats(0, 1), large=st.floats(0, 1), seed=st.integers(0, 99))
def test_what_a_small_share_takes_a_larger_one_takes_too(small: float, large: float, seed: int) -> None:
    small, large = sorted((small, large))
    ids = [content_id(str(number)) for number in range(50)]

    def taken(fraction: float) -> set[str]:
        choice = Choice("train", "sample", seed, {"web": fraction})
        return {id for id in ids if choice.source_of(id, "train", "web/a.jsonl") == "web"}

    assert taken(small) <= taken(large)
    assert taken(1.0) == set(ids)


def test_other_splits_and_other_sources_give_nothing() -> None:
    choice = Choice("train", "sample", 0, {"web": 1.0, "web/de": 0.0})
    assert choice.source_of("1", "train", "web/en") == "web"
    assert choice.source_of("1", "heldout", "web/en") is None
    assert choice.source_of("1", "train", "web/de/x") is None
    assert choice.source_of("1", "train", "webs/en") is None


@pytest.mark.parametrize("weights", [{"web": 2.0, "code": 1.0}, {"web": 0.01, "code": 0.03}, {"code": 5.0}])
def test_the_sample_has_the_bytes_that_the_weights_say(weights: dict[str, float]) -> None:
    drawn = random.Random(0)
    documents = [
        (content_id(f"{source} {number}"), source, drawn.randint(10, 2_000))
        for source, count in (("web", 30_000), ("code", 8_000), ("more", 2_000))
        for number in range(count)
    ]
    there = {source: sum(size for _, s, size in documents if s == source) for source in weights}
    asked = 1_500_000
    choice = Choice("train", "sample", 3, fractions_of_shares(weights, there, asked))
    taken = dict.fromkeys(weights, 0)
    for id, source, size in documents:
        name = choice.source_of(id, "train", source)
        if name is not None:
            taken[name] += size
    for name, weight in weights.items():
        assert taken[name] == pytest.approx(asked * weight / sum(weights.values()), rel=0.08)


def test_a_source_with_less_than_its_share_gives_all_it_has_and_changes_no_other() -> None:
    fractions = fractions_of_shares({"web": 1.0, "code": 1.0}, {"web": 1_000_000, "code": 300}, 200_000)
    assert fractions == {"web": 0.1, "code": 1.0}
