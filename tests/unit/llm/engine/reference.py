"""What the engine must equal: every sequence by itself, recomputed whole for each token, in plain numpy."""

from typing import Any

import numpy as np
import torch

from llm.engine.request import SamplingParams
from llm.engine.uniform import uniform
from llm.models.decoder import Decoder
from llm.models.presets import model_config


def lively_model(seed: int = 1, vocab_size: int = 500, **shape: Any) -> Decoder:
    """A tiny random decoder with spread-out logits, and padding rows that would win if they could."""
    model = Decoder(model_config("tiny-100k", vocab_size, **shape))
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() == 2 else 1)
        model.embed.weight[vocab_size:] = 9.0
    return model.eval()


def distribution(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, token by token as their definitions say."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.temperature == 0:
        return np.eye(len(logits))[order[0]]
    weights = np.exp((logits - logits.max()) / params.temperature)
    kept = order[: params.top_k] if params.top_k else order
    total, nucleus, mass = sum(weights[i] for i in kept), [], 0.0
    for i in kept:
        nucleus.append(i)
        mass += weights[i] / total
        if mass >= params.top_p and params.top_p < 1:
            break
    probabilities = np.zeros(len(logits))
    probabilities[nucleus] = weights[nucleus]
    return probabilities / probabilities.sum()


def last_logits(model: Decoder, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0, -1, : model.config.vocab_size].double().numpy()


def generate_alone(
    model: Decoder, prompt: list[int], params: SamplingParams
) -> tuple[list[int], list[float]]:
    """(response ids, logprobs) by full recomputation."""
    tokens, logprobs = list(prompt), []
    while len(tokens) - len(prompt) < params.max_tokens:
        logits = last_logits(model, tokens)
        probabilities = distribution(logits, params)
        u = uniform(np.array([params.seed], np.uint64), np.array([len(tokens)], np.uint64))[0]
        token = int(np.argmax(np.cumsum(probabilities) > u))
        if params.temperature == 0:
            probabilities = distribution(logits, SamplingParams(1))
        logprobs.append(float(np.log(probabilities[token])))
        tokens.append(token)
        if token in params.stop_token_ids:
            break
    return tokens[len(prompt) :], logprobs
