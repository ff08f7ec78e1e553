"""Configuration of `manta serve`."""

from typing import Literal

from pydantic import Field

from pipelines.stage_config import Frozen

API_KEY_VARIABLE = "MANTA_API_KEY"


class ServedModel(Frozen):
    """What is served, and how much of it at once: all that a Serve application must be told.

    Requests must carry the key in the environment variable MANTA_API_KEY.
    """

    root: str = "runs/default"
    """Where artifacts live: a folder, or s3://BUCKET/PREFIX."""
    model: str = "aligned"
    """Model to serve: NAME or NAME/VERSION."""
    replicas: int = Field(1, gt=0)
    """Copies of the model that share the requests."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of each replica; by default an equal share of the cluster's CPUs, less one for HTTP."""
    gpus: Literal[0, 1] | None = None
    """GPUs of each replica; by default one if the cluster has one for every replica."""
    max_batch: int = Field(32, gt=0)
    """Sequences that one replica generates at once."""
    max_seq_len: int | None = Field(None, gt=0)
    """Most tokens of prompt and response together; by default the model's own limit."""
    max_queued_requests: int = Field(128, ge=0)
    """Sequences that may wait beyond those; more are answered with 429."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and cache."""


class ServeConfig(ServedModel):
    """Serve a model over the OpenAI API until Ctrl-C.

    Requests must carry the key in the environment variable MANTA_API_KEY if it is set; it must be set unless
    the server listens on this machine alone.
    """

    address: str | None = None
    """Ray cluster to join, HOST:PORT; by default one that runs on this machine, else one is started."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = Field(8000, gt=0, lt=65536)
    """Port to listen on."""
