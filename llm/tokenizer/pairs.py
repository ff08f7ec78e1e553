"""What an encoder-decoder reads and writes of a conversation, in token ids.

    one question    reads     question <eos>                                   as T5 does
    longer          reads     <|system|> … <|end|> <|user|> … <|end|> <eos>    with the chat template's marks
    either          writes    the assistant's last words <eos>

A pair of texts is a conversation of one question and one answer.
"""

from collections.abc import Sequence

from llm.tokenizer.chat import Message, encode_conversation
from llm.tokenizer.tokenizer import Tokenizer


def encode_source(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of what is read: the messages before the answer, and <eos>."""
    if [message["role"] for message in messages] == ["user"]:
        return [*tokenizer.encode(messages[0]["content"]), tokenizer.eos_id]
    ids, _ = encode_conversation(tokenizer, messages)
    return [*ids[1:], tokenizer.eos_id]


def encode_pair(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids of what is read and of what is written; there are none of the latter if the user speaks last."""
    *before, last = messages
    if last["role"] != "assistant":
        return encode_source(tokenizer, messages), []
    return encode_source(tokenizer, before), [*tokenizer.encode(last["content"]), tokenizer.eos_id]
