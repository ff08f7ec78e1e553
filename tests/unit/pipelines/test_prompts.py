"""Prompts: a stable order, the length limit, and no question asked twice."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.prompts import load_prompts, sample_seed


class Characters:
    """A tokenizer of one id a character."""

    def encode(self, text):
        return [ord(character) for character in text]


def corpus(path, contents, heldout_every=5):
    rows = [
        {
            "id": f"id{number}",
            "group": f"file{number % 3}",
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "reply"}],
            "split": "heldout" if heldout_every and number % heldout_every == 0 else "train",
        }
        for number, text in enumerate(contents)
    ]
    draft = ArtifactStore(path).begin(
        kind="corpora", name="chat", stage="made", logic_version=1, what={}, inputs={}
    )
    assert isinstance(draft, Draft)
    with draft.writing() as writing:
        pq.write_table(pa.Table.from_pylist(rows[:7]), writing.path / "part-00000.parquet")
        pq.write_table(pa.Table.from_pylist(rows[7:]), writing.path / "part-00001.parquet")
    draft.commit({})


def load(path, **changes):
    options = {"split": "train", "seed": 0, "limit": 100, "max_tokens": 20} | changes
    return load_prompts(ArtifactStore(path).resolve("corpora", "chat"), Characters(), **options)


def test_a_larger_limit_continues_the_same_list(tmp_path):
    corpus(tmp_path, [f"question {number}" for number in range(20)])
    everything = load(tmp_path)
    assert len(everything) == 16
    assert load(tmp_path, limit=6) == everything[:6]
    assert [p.id for p in load(tmp_path, seed=1)] != [p.id for p in everything]
    assert {p.id for p in load(tmp_path, split="heldout")} == {"id0", "id5", "id10", "id15"}


def test_the_reply_is_left_out_and_long_prompts_are_passed_over(tmp_path):
    corpus(tmp_path, ["short", "x" * 30, *(f"ten chars{n}" for n in range(8))])
    prompts = load(tmp_path)
    assert "id1" not in {p.id for p in prompts}
    assert len(prompts) == 7
    for prompt in prompts:
        assert prompt.messages == [{"role": "user", "content": prompt.text}]
        assert prompt.text.startswith("ten chars")
        assert prompt.token_ids[-1] == 6


def test_a_question_is_asked_once_and_not_held_out_if_it_was_learned(tmp_path):
    """Conversations 0, 5 and 10 are held out."""
    corpus(
        tmp_path, ["seen", "seen", "seen", "other", "third", "fresh", "x" * 30, "fourth", "a", "b", "fresh"]
    )
    assert sorted(p.text for p in load(tmp_path)) == ["a", "b", "fourth", "other", "seen", "third"]
    assert [p.text for p in load(tmp_path, split="heldout")] == ["fresh"]


def test_no_prompt_at_all_is_said_with_the_mend(tmp_path):
    corpus(tmp_path, [f"question {number}" for number in range(20)])
    with pytest.raises(UserError, match=r"no held-out prompt of 9 tokens or less; raise --max-prompt-tokens"):
        load(tmp_path, split="heldout", max_tokens=9)
    corpus(tmp_path / "other", [f"question {number}" for number in range(20)], heldout_every=0)
    with pytest.raises(UserError, match=r"no held-out conversation; make it with another --heldout-fraction"):
        load(tmp_path / "other", split="heldout")


def test_seeds_depend_on_their_parts_alone():
    seeds = {sample_seed(s, p, k) for s in range(5) for p in ("a", "b", "1a") for k in range(5)}
    assert len(seeds) == 75
    assert max(seeds) < 2**63


def test_answered_prompts_come_with_their_answer(tmp_path):
    draft = ArtifactStore(tmp_path).begin(
        kind="corpora", name="chat", stage="made", logic_version=1, what={}, inputs={}
    )
    said = [["user", "assistant"], ["user"], ["user", "assistant", "user"], ["user", "assistant"] * 2]
    rows = [
        {
            "id": str(number),
            "group": "g",
            "messages": [
                {"role": role, "content": f"{role} {number}.{turn}"} for turn, role in enumerate(roles)
            ],
            "split": "train",
        }
        for number, roles in enumerate(said)
    ]
    with draft.writing() as writing:
        pq.write_table(pa.Table.from_pylist(rows), writing.path / "part-00000.parquet")
    draft.commit({})
    prompts = load(tmp_path, max_tokens=99, answered=True, encode=lambda _, messages: [len(messages)])
    found = {prompt.id: (prompt.text, prompt.reference, prompt.token_ids) for prompt in prompts}
    assert found == {
        "0": ("user 0.0", "assistant 0.1", [1]),
        "3": ("user 3.2", "assistant 3.3", [3]),
    }
    assert len(load(tmp_path, max_tokens=99)) == 4
