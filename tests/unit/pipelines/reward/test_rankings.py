"""Batches of rankings: padding of responses and tokens, and epochs that depend on the seed alone."""

import pytest
import torch

from cluster.errors import UserError
from llm.training.loss import IGNORE
from pipelines.preferences.table import write_rows
from pipelines.reward.rankings import Ranking, chosen, lengths_of, padded, read_rankings


def test_missing_responses_and_tokens_are_padded():
    three = Ranking([[2, 9, 9], [2, 9], [2, 8, 0, 7]], [2, 3, 1])
    two = Ranking([[2, 9, 9, 9, 9], [2]], [1, 1])
    ((tokens, ranks),) = padded([three, two], micro_batch=2)
    assert tokens.shape == (6, 5)
    assert ranks.tolist() == [[1, 1, IGNORE], [2, 3, 1]]
    assert lengths_of(tokens).tolist() == [5, 1, 1, 3, 2, 4]
    assert len(padded([three, two, two], micro_batch=2)) == 2


def test_every_epoch_sees_each_ranking_once_in_another_order():
    rankings = [Ranking([[number], [number]], [1, 2]) for number in range(10)]

    def order(first, count, seed=0):
        return [ranking.sequences[0][0] for ranking in chosen(rankings, first, count, seed)]

    assert sorted(order(0, 10)) == sorted(order(10, 10)) == list(range(10))
    assert order(0, 10) != order(10, 10)
    assert order(0, 10) != order(0, 10, seed=1)
    assert order(7, 6) == order(0, 20)[7:13], "batches cross epochs"


def test_responses_that_do_not_fit_are_left_out(tmp_path):
    def row(lengths, split):
        return {
            "prompt_id": "a",
            "group": "a",
            "prompt": [{"role": "user", "content": "?"}],
            "prompt_ids": [2, 5, 6],
            "responses": [{"text": "", "token_ids": [9] * n, "finish_reason": "stop"} for n in lengths],
            "ranks": [1, 2, 3],
            "reviewer": "simulated-python",
            "split": split,
        }

    write_rows(tmp_path / "preferences.parquet", [row([2, 9, 3], "train"), row([9, 9, 1], "heldout")])
    (ranking,) = read_rankings(tmp_path, "train", max_seq_len=8)
    assert ranking.ranks == [1, 3]
    assert [len(sequence) for sequence in ranking.sequences] == [5, 6]
    with pytest.raises(UserError, match="no heldout ranking"):
        read_rankings(tmp_path, "heldout", max_seq_len=8)
    assert torch.equal(lengths_of(torch.tensor([[0, 0]])), torch.tensor([1]))
