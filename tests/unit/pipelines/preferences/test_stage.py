"""Which rankings a reward model is tested on: whole groups, chosen by a hash of their own."""

import pytest

from cluster.errors import UserError
from llm.text.identity import is_heldout
from pipelines.preferences.config import PreferencesConfig
from pipelines.preferences.stage import check_split, split_of
from pipelines.prompts import Prompt


def prompt(number: int, group: str) -> Prompt:
    return Prompt(f"id{number}", group, [{"role": "user", "content": str(number)}], [2])


def test_a_group_is_on_one_side_only():
    config = PreferencesConfig(heldout_fraction=0.3)
    sides = [{split_of(config, prompt(n, f"file{file}")) for n in range(20)} for file in range(50)]
    assert all(len(side) == 1 for side in sides)
    assert {"train"} in sides
    assert {"heldout"} in sides


def test_the_share_is_that_of_groups_which_the_corpus_did_not_hold_out():
    """The corpus splits by the same hash and seed: its training groups must be split like any others."""
    config = PreferencesConfig(heldout_fraction=0.2)
    learned = [name for n in range(5000) if not is_heldout(name := f"file{n}", config.seed, 0.2)]
    share = sum(split_of(config, prompt(0, name)) == "heldout" for name in learned) / len(learned)
    assert abs(share - 0.2) < 0.02


def test_one_side_alone_is_refused():
    few = [prompt(number, "the only file") for number in range(9)]
    with pytest.raises(UserError, match="all 9 prompts, of 1 groups, would be"):
        check_split(PreferencesConfig(), few)
    check_split(PreferencesConfig(heldout_fraction=0.5), [prompt(n, f"file{n}") for n in range(20)])
