"""The Ray Serve deployment: the engine and the API in one process, so that a request takes one hop."""

import hashlib
import os
from dataclasses import dataclass

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from cluster.artifacts.manifest import Artifact
from cluster.placement import Share, assigned_device
from cluster.prometheus import Emitter
from llm.engine.engine import Engine
from llm.engine.loop import EngineLoop
from llm.models.decoder import Decoder
from llm.models.load import load_model
from pipelines.model_folder import CONFIG, WEIGHTS
from pipelines.serve.api import build_app
from pipelines.serve.config import API_KEY_VARIABLE, ServedModel
from pipelines.serve.meter import Meter
from pipelines.serve.service import Service
from pipelines.tokenizer_artifact import load_tokenizer


@dataclass(frozen=True)
class ModelSettings:
    """What a replica is told. The key travels as its SHA-256 only."""

    model: Artifact
    threads: int
    max_batch: int
    max_seq_len: int | None
    max_queued_requests: int
    dtype: str
    key_digest: str | None


@serve.ingress()
class ModelServer:
    """One replica: a model in an engine in a thread, and the app that talks to it."""

    def __init__(self, settings: ModelSettings) -> None:
        torch.set_num_threads(settings.threads)
        model, _ = load_model(settings.model.fetch(CONFIG, WEIGHTS))
        if not isinstance(model, Decoder):
            raise ValueError(f"{settings.model.ref} is a scalar model; only language models can be served")
        engine = Engine(
            model,
            max_batch=settings.max_batch,
            max_seq_len=settings.max_seq_len,
            # A step's length is the pause between the tokens of every stream: keep it short.
            step_tokens=max(512, 2 * settings.max_batch),
            device=assigned_device(),
            dtype=getattr(torch, settings.dtype),
        )
        engine_loop = EngineLoop(engine, settings.max_queued_requests)
        self.service = Service(
            engine_loop=engine_loop,
            meter=Meter(Emitter("serving", {"model": settings.model.name}, in_replica=True), engine_loop),
            tokenizer=load_tokenizer(settings.model),
            model_name=settings.model.name,
            model_ref=settings.model.ref,
            fingerprint=settings.model.fingerprint,
            max_seq_len=engine.max_seq_len,
            key_digest=settings.key_digest,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self.service)

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises."""
        if self.service.engine_loop.failure is not None:
            raise RuntimeError("the engine's thread has ended") from self.service.engine_loop.failure


def application(options: ServedModel, model: Artifact, share: Share) -> serve.Application:
    """The Serve application. The engine's own bounded queue answers 429 before Serve's limits are reached.

    share: what each replica reserves of its node; it has as many threads as CPUs.
    """
    key = os.environ.get(API_KEY_VARIABLE)
    settings = ModelSettings(
        model=model,
        threads=int(share.cpus),
        max_batch=options.max_batch,
        max_seq_len=options.max_seq_len,
        max_queued_requests=options.max_queued_requests,
        dtype=options.dtype,
        key_digest=hashlib.sha256(key.encode()).hexdigest() if key else None,
    )
    in_replica = options.max_batch + options.max_queued_requests
    deployment = serve.deployment(
        ModelServer,
        name="model",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
        max_ongoing_requests=in_replica + 64,
        max_queued_requests=in_replica,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(settings)
