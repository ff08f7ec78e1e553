"""The chat template, in token ids from end to end.

    <bos> <|user|> … <|end|> <|assistant|> … <|end|>

Each message is its role's id, the content encoded alone, <|end|>. A prompt ends with <|assistant|>. Since the
content is encoded alone, a conversation's ids are its prompt's ids followed by the reply's ids: nothing is
ever tokenised again, and what a model was asked is what it is trained on.
"""

from collections.abc import Mapping, Sequence

from llm.tokenizer.special import ASSISTANT_ID, BOS_ID, END_ID, SYSTEM_ID, USER_ID
from llm.tokenizer.tokenizer import Tokenizer

ROLE_IDS = {"system": SYSTEM_ID, "user": USER_ID, "assistant": ASSISTANT_ID}

Message = Mapping[str, str]


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of the messages, ending in <|assistant|>: what a model continues with its reply and <|end|>.

    Raises ValueError on an unknown role, or when there is no message.
    """
    ids, _ = encode_conversation(tokenizer, messages)
    return [*ids, ASSISTANT_ID]


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and its loss mask: 1 on what an assistant says and its <|end|>, else 0.

    encode_conversation(prompt + [reply])[0] == encode_prompt(prompt) + encode(reply content) + [<|end|>].
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    ids, loss_mask = [BOS_ID], [0]
    for message in messages:
        role = message["role"]
        if role not in ROLE_IDS:
            raise ValueError(f"unknown role {role!r}; use one of {', '.join(ROLE_IDS)}")
        content = [*tokenizer.encode(message["content"]), END_ID]
        ids += [ROLE_IDS[role], *content]
        loss_mask += [0, *[int(role == "assistant")] * len(content)]
    return ids, loss_mask
