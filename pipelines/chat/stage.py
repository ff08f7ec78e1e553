"""`manta chat`: a conversation in the terminal, streamed."""

import os
import sys

from cluster.errors import UserError
from pipelines.chat.client import ChatClient
from pipelines.chat.config import ChatConfig

API_KEY_VARIABLE = "MANTA_API_KEY"
HELP = "/clear forgets the conversation, /quit or Ctrl-D ends; Ctrl-C stops a reply"


def run(config: ChatConfig) -> int:
    """Hold the conversation; returns the exit code."""
    client = ChatClient(config.url, os.environ.get(API_KEY_VARIABLE), config.model)
    if config.message is not None:
        _say(client, config, [*_opening(config), {"role": "user", "content": config.message}])
        return 0
    print(f"{client.model} at {client.url}. {HELP}.")
    messages = _opening(config)
    while (line := _ask()) is not None:
        if line in ("/quit", "/exit"):
            break
        if line == "/clear":
            messages = _opening(config)
        elif line.startswith("/"):
            print(f"no command {line}; {HELP}")
        elif line:
            messages = _turn(client, config, messages, line)
    return 0


def _turn(
    client: ChatClient, config: ChatConfig, messages: list[dict[str, str]], line: str
) -> list[dict[str, str]]:
    """One question and its reply; returns the conversation after it, unchanged if the server refused."""
    asked = [*messages, {"role": "user", "content": line}]
    try:
        reply = _say(client, config, asked)
    except UserError as error:
        print(f"{error}\n(/clear starts over)", file=sys.stderr)
        return messages
    return [*asked, {"role": "assistant", "content": reply}] if config.history else messages


def _say(client: ChatClient, config: ChatConfig, messages: list[dict[str, str]]) -> str:
    """Print the reply as it comes and return it; Ctrl-C cuts it short, which also stops the server's work."""
    reply = ""
    pieces = client.reply(
        messages,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
    try:
        for piece in pieces:
            reply += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    finally:
        pieces.close()  # type: ignore[attr-defined]
    print()
    return reply


def _ask() -> str | None:
    """The next line, or None at the end of input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _opening(config: ChatConfig) -> list[dict[str, str]]:
    return [{"role": "system", "content": config.system}] if config.system else []
