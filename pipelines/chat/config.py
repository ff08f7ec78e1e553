"""Configuration of `manta chat`."""

from pydantic import Field

from pipelines.stage_config import Frozen


class ChatConfig(Frozen):
    """Talk to a model that `manta serve`, or any server with the OpenAI API, offers.

    The key in the environment variable MANTA_API_KEY, if it is set, is sent along.
    """

    url: str = "http://127.0.0.1:8000"
    """Where the server listens."""
    model: str | None = None
    """Model to talk to; by default the first that the server lists."""
    message: str | None = None
    """Ask only this, print the reply and end."""
    system: str | None = None
    """System prompt."""
    temperature: float = Field(0.7, ge=0)
    """Below 1 the replies are more alike; 0 always takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together."""
    max_tokens: int | None = Field(None, gt=0)
    """Tokens after which a reply is cut off; by default when the context is full."""
    seed: int | None = None
    """Makes replies repeatable."""
    history: bool = True
    """Whether earlier turns are sent along."""
