"""What --tokens may say, and what it means."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.mixture import parse_tokens
from pipelines.run.signatures import reads


def test_one_name_is_no_mixture():
    assert parse_tokens("web=7; 2e9: web=3") == parse_tokens("web")
    for text in ("web", "web/1a2b3c", "tokens/web"):
        choice = parse_tokens(text)
        assert (choice.names, choice.stages, choice.what()) == ((text,), (), {})
    assert PretrainConfig(tokens="web").what() == PretrainConfig().what(), "its content is what counts"


def test_weights_and_a_schedule():
    choice = parse_tokens("web=0.7, code/1a2b=0.3; 2e9: web=5,code/1a2b=3,math=2; 3.5B: math=1")
    assert choice.names == ("web", "code/1a2b", "math")
    assert choice.stages == ((0, (7, 3, 0)), (2 * 10**9, (5, 3, 2)), (3_500_000_000, (0, 0, 1)))
    assert choice.roles == {"tokens": "web", "tokens-2": "code/1a2b", "tokens-3": "math"}
    assert choice.mixture(seq_len=4096).text() == "0: 7 3 0; 488290: 5 3 2; 854500: 0 0 1"


def test_names_are_no_part_of_what_a_mixture_is():
    first, second = (
        PretrainConfig(tokens=text) for text in ("web=70,code=30; 1M: code=1", "a=7,b=3; 1e6: b=2")
    )
    assert first.what() == second.what() != PretrainConfig(tokens="a=7,b=2; 1e6: b=2").what()
    assert reads("pretrain", first) == {"tokens": "tokens/web", "tokens-2": "tokens/code"}


@given(st.lists(st.decimals(min_value="0.001", max_value=50, places=3), min_size=2, max_size=5))
def test_weights_are_whole_numbers_in_the_same_proportion(weights):
    text = ",".join(f"s{number}={weight}" for number, weight in enumerate(weights))
    [(_, whole)] = parse_tokens(text).stages
    assert all(isinstance(weight, int) for weight in whole)
    for asked, got in zip(weights, whole, strict=True):
        assert Fraction(got, sum(whole)) == Fraction(asked) / sum(map(Fraction, weights))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("web=7,code", "'code' is no NAME=WEIGHT"),
        ("web=7,code=0", "'code=0' is no NAME=WEIGHT with a weight above 0"),
        ("web=nan", "'web=nan' is no"),
        ("web=7,web=3", "web has two weights"),
        ("web;code", "'web' is no NAME=WEIGHT"),
        ("web=7;code=3", "'code=3' does not say when it begins; write it as 2e9: web=7,code=3"),
        ("web=7; soon: code=3", "'soon' is no number of tokens; write 2e9"),
        ("web=7; 1.5: code=3", r"'1\.5' is no number of tokens"),
        ("web=7; 1e30: code=3", "'1e30' is no number of tokens"),
        ("web=7; 1e99999999999999999999: code=3", "is no number of tokens"),
        ("web=7; 1_0: code=3; 20: web=1", "after 10 and 20 tokens begin with the same sequence of 256"),
        ("web=7; 2e9: code=3; 1e9: web=1", "'1e9: web=1' begins no later"),
        ("web=10000,code=1", "repeat only after 10001 samples, more than 10000: round them"),
    ],
)
def test_what_is_no_mixture_is_refused_with_the_mend(text, problem):
    with pytest.raises(ValueError, match=f"tokens: .*{problem}"):
        PretrainConfig(tokens=text)
