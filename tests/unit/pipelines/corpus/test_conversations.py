"""Which conversations enter a corpus: those in which system, user and assistant speak in turn."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.documents import Removed, documents
from pipelines.unit_actor import InputError


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """What becomes of the records of a file."""
    file = tmp_path_factory.mktemp("corpus") / "talk.jsonl"
    config = CorpusConfig(paths=(str(file),), format="conversations")

    def of_records(*records):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        return list(documents(file, {"source": "talk.jsonl", "format": "jsonl"}, config))

    return of_records


def messages(roles, content="words"):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": names[role], "content": content} for role in roles]}


@given(st.text("sua", min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_system_message_then_user_and_assistant_in_turn(read, roles):
    (row,) = read(messages(roles))
    turns = roles[1:] if roles[0] == "s" else roles
    in_turn = turns != "" and "uauaua".startswith(turns)
    assert isinstance(row, Removed) != in_turn
    if in_turn:
        assert [m["role"][0] for m in row["messages"]] == list(roles)
    else:
        assert row.reason == "turn_order"


@pytest.mark.parametrize(
    ("roles", "where"), [("suau" + "u", 4), ("uaa", 2), ("a", 0), ("usa", 1), ("ssu", 1), ("s", 1)]
)
def test_the_first_message_out_of_turn_is_told(read, roles, where):
    (row,) = read(messages(roles))
    assert (row.reason, row.score) == ("turn_order", where)


def test_an_empty_message_removes_its_conversation(read):
    good, blank = messages("ua"), messages("uaua")
    blank["messages"][3]["content"] = " \n"
    kept, removed = read(good, blank)
    assert kept["messages"] == good["messages"]
    assert removed.reason == "empty"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": []}, "no conversation: it needs a list `messages`, or a pair: `prompt` and `response`"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            r"messages\[0\] has role 'tool'; use system, user,",
        ),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no text as `content`"),
        ({"prompt": "x", "response": None}, r"messages\[1\] has no text as `content`"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(read, record, problem):
    with pytest.raises(InputError, match=rf"talk\.jsonl:2: {problem}"):
        read(messages("ua"), record)


def test_a_pair_of_texts_is_a_question_and_its_answer(read):
    names = [("prompt", "response"), ("prompt", "completion"), ("source", "target")]
    rows = read(*({asks: "hello", answers: "hallo"} for asks, answers in names))
    expected = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hallo"}]
    assert [row["messages"] for row in rows] == [expected] * 3
    assert len({row["id"] for row in rows}) == 1
