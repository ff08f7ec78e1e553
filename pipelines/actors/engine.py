"""One engine in one Ray actor: token ids in, token ids out, weights by reference."""

from collections.abc import Sequence

import numpy as np
import ray
import torch

from cluster.artifacts.manifest import Artifact
from cluster.placement import assigned_device
from llm.engine.engine import Engine
from llm.engine.generate import generate
from llm.engine.request import Completion, Request
from llm.models.decoder import Decoder
from llm.models.load import load_model
from pipelines.actors.weights import Place, unpack
from pipelines.model_folder import CONFIG, WEIGHTS


@ray.remote(max_restarts=0)
class EngineActor:
    """Generates for other actors. Who owns it restarts it: a fresh one has old weights until told better.

    Args:
        model: a model artifact with a language-model head.
        max_batch: most sequences generated at once.
        max_seq_len: most tokens of prompt and response; the model's own limit by default.
        threads: CPU threads for the matmuls; by default the CPUs that Ray gave this actor.
        dtype: torch dtype of weights and cache, "float32" or "bfloat16".
    """

    def __init__(
        self,
        model: Artifact,
        *,
        max_batch: int = 128,
        max_seq_len: int | None = None,
        threads: int | None = None,
        dtype: str = "float32",
    ) -> None:
        assigned = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
        torch.set_num_threads(threads or max(1, assigned))
        decoder, _ = load_model(model.fetch(CONFIG, WEIGHTS))
        if not isinstance(decoder, Decoder):
            raise ValueError(f"{model.ref} is a scalar model; the engine needs a language model")
        self.engine = Engine(
            decoder,
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            step_tokens=max(2048, 2 * max_batch),
            device=assigned_device(),
            dtype=getattr(torch, dtype),
        )

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Completions in the order of the requests. Raises RequestError, before any runs, if one cannot."""
        return generate(self.engine, requests)

    def update_weights(self, layout: Sequence[Place], version: int, *buckets: np.ndarray) -> int:
        """Swap in weights sent as flat uint8 buckets (see weights.py); returns the version now served."""
        self.engine.update_weights(unpack(buckets, layout), version)
        return self.engine.weights_version
