"""Prompts: a stable order, the length limit, and a split by group."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.prompts import is_heldout, load_prompts, sample_seed


class Characters:
    """A tokenizer of one id a character."""

    def encode(self, text):
        return [ord(character) for character in text]


def corpus(path, contents):
    rows = [
        {
            "id": f"id{number}",
            "group": f"file{number % 3}",
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "reply"}],
            "split": "heldout" if number % 5 == 0 else "train",
        }
        for number, text in enumerate(contents)
    ]
    pq.write_table(pa.Table.from_pylist(rows[:7]), path / "part-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[7:]), path / "part-00001.parquet")


def load(path, **changes):
    options = {"split": "train", "seed": 0, "limit": 100, "max_tokens": 20} | changes
    return load_prompts(path, Characters(), **options)


def test_a_larger_limit_continues_the_same_list(tmp_path):
    corpus(tmp_path, [f"question {number}" for number in range(20)])
    everything = load(tmp_path)
    assert len(everything) == 16
    assert load(tmp_path, limit=6) == everything[:6]
    assert [p.id for p in load(tmp_path, seed=1)] != [p.id for p in everything]
    assert {p.id for p in load(tmp_path, split="heldout")} == {"id0", "id5", "id10", "id15"}


def test_the_reply_is_left_out_and_long_prompts_are_passed_over(tmp_path):
    corpus(tmp_path, ["short", "x" * 30, *["ten chars!"] * 8])
    prompts = load(tmp_path)
    assert "id1" not in {p.id for p in prompts}
    assert all(p.messages == [{"role": "user", "content": "ten chars!"}] for p in prompts)
    assert prompts[0].text == "ten chars!"
    assert prompts[0].token_ids[-1] == 6


def test_the_first_prompts_are_split_like_all_others(tmp_path):
    corpus(tmp_path, [f"question {number}" for number in range(400)])
    first = load(tmp_path, limit=100)
    assert 10 < sum(is_heldout(0, prompt.id, 0.2) for prompt in first) < 32


def test_seeds_and_splits_depend_on_their_parts_alone():
    seeds = {sample_seed(s, p, k) for s in range(5) for p in ("a", "b", "1a") for k in range(5)}
    assert len(seeds) == 75
    assert max(seeds) < 2**63
    share = sum(is_heldout(0, f"group{number}", 0.2) for number in range(5000)) / 5000
    assert abs(share - 0.2) < 0.03
