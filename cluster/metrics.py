"""Every metric there is, declared once.

    `name`              in metrics.jsonl, timing.jsonl and wandb
    `exported`          at Ray's Prometheus endpoints, with `labels`; cluster/prometheus.py sends it there
    the whole list      makes the Grafana dashboard and the tables of docs/metrics.md

A metric that is not declared goes to no dashboard; tests compare what stages emit with this list.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

RUN = ("stage", "run")
"""Labels of a run's metrics: the stage, and NAME-VERSION of its artifact, which is its name in wandb."""


@dataclass(frozen=True)
class Metric:
    """One metric. Counters only grow, gauges are what was measured last, histograms count by size."""

    group: str
    """What it is about: a row of the dashboard, and a part of the exported name."""
    name: str
    kind: Kind
    unit: str
    """Of one unit of the value; empty for a plain number."""
    help: str
    panel: str
    """Title of the chart that shows it, with others of the same unit."""
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""
    combine: Literal["max", "sum"] = "max"
    """How a gauge's values from several processes become one."""

    @property
    def emitted(self) -> str:
        """The name that Ray is given."""
        return f"manta_{self.group}_{self.name}"

    @property
    def exported(self) -> str:
        """The name at the endpoint, where Ray and Prometheus have added to it."""
        return f"ray_{self.emitted}{'_total' if self.kind == 'counter' else ''}"


_unit = partial(Metric, "units", labels=("work",))
_training = partial(Metric, "training", kind="gauge", labels=RUN)
_prompts = partial(Metric, "prompts", labels=RUN)
_rlhf = partial(Metric, "rlhf", kind="gauge", labels=RUN)
_serving = partial(Metric, "serving", labels=("model",))

_SECONDS_TO_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SECONDS_OF_A_REQUEST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

UNITS = (
    _unit("done", "counter", "units", "Units of work finished and committed", "Units"),
    _unit("retried", "counter", "units", "Attempts that failed and are made again", "Units"),
    _unit("failed", "counter", "units", "Units given up and quarantined", "Units"),
    _unit("bytes", "counter", "bytes", "Input of the finished units, where the plan knows its size", "Input"),
    _unit("per_s", "gauge", "units/s", "Units finished per second since this command began", "Rate of units"),
    _unit("remaining", "gauge", "units", "Units still to be done", "Units remaining"),
)

TRAINING = (
    _training("step", unit="steps", help="Optimizer steps taken", panel="Step"),
    _training(
        "loss", unit="nats", help="Training loss per token (reward models: per ranked response)", panel="Loss"
    ),
    _training(
        "heldout_loss", unit="nats", help="The same on held-out data, at the last evaluation", panel="Loss"
    ),
    _training(
        "heldout_bits_per_byte",
        unit="bits/byte",
        help="Of held-out text, at the last evaluation",
        panel="Held-out bits per byte",
    ),
    _training(
        "heldout_accuracy",
        unit="share",
        help="Held-out pairs of responses that a reward model puts in the right order; of an encoder, masked "
        "tokens that it guesses",
        panel="Held-out accuracy",
    ),
    _training("heldout_pairs", unit="pairs", help="Held-out pairs without a tie", panel="Held-out pairs"),
    _training(
        "heldout_score_mean",
        unit="",
        help="Mean score that a reward model gives to held-out responses",
        panel="Held-out scores",
    ),
    _training("heldout_score_std", unit="", help="Their standard deviation", panel="Held-out scores"),
    _training("z_loss", unit="nats", help="What the z-loss adds to the loss, per token", panel="z-loss"),
    _training("learning_rate", unit="", help="Of the last step", panel="Learning rate"),
    _training(
        "grad_norm", unit="", help="Norm of the last step's gradient, before clipping", panel="Gradient norm"
    ),
    _training(
        "expert_load",
        unit="",
        help="Tokens of the busiest expert over the mean of its layer's, in the worst layer; 1 is even",
        panel="Load of experts",
    ),
    _training(
        "dead_experts",
        unit="experts",
        help="Experts that no token of the last step chose",
        panel="Dead experts",
    ),
    _training(
        "skipped_steps",
        unit="steps",
        help="Steps that were not taken because their loss or gradient stood out",
        panel="Skipped steps",
    ),
    _training(
        "tokens",
        unit="tokens",
        help="Tokens (reward models: ranked responses) that the last step learned from",
        panel="Tokens per step",
    ),
    _training(
        "tokens_per_s",
        unit="tokens/s",
        help="Tokens learned from per second of training steps",
        panel="Tokens per second",
    ),
    _training(
        "responses_per_s",
        unit="responses/s",
        help="Ranked responses that a reward model learned from per second of training steps",
        panel="Responses per second",
    ),
    _training(
        "mfu",
        unit="share",
        help="Model FLOPs utilisation: share of the workers' peak",
        panel="Model FLOPs utilisation",
    ),
    _training(
        "seconds", unit="seconds", help="Spent in training steps since the previous report", panel="Step time"
    ),
    _training(
        "data_wait_seconds",
        unit="seconds",
        help="Of these, spent waiting for data",
        panel="Step time",
    ),
    _training(
        "forward_seconds", unit="seconds", help="Of these, in forward passes of worker 0", panel="Step time"
    ),
    _training("backward_seconds", unit="seconds", help="In backward passes", panel="Step time"),
    _training("optimizer_seconds", unit="seconds", help="In the optimizer", panel="Step time"),
    _training(
        "communication_seconds",
        unit="seconds",
        help="In collectives, in whichever part of a step; on CPUs, with several workers",
        panel="Step time",
    ),
    _training("slowest_rank", unit="", help="Worker that the others wait for most", panel="Slowest worker"),
    _training(
        "slowest_rank_ratio",
        unit="",
        help=(
            "Its own time a step, without waiting for others (on GPUs: for some matmuls), over the median of "
            "all workers"
        ),
        panel="Slowest worker's time over the median",
    ),
    _training(
        "peak_memory_bytes",
        unit="bytes",
        help="Most memory of worker 0 so far: of a GPU what was allocated, else resident",
        panel="Peak memory",
    ),
    _training(
        "checkpoint_seconds",
        unit="seconds",
        help="How long the last checkpoint held up training",
        panel="Checkpoint",
    ),
    _training(
        "checkpoint_commit_seconds",
        unit="seconds",
        help="How long the last checkpoint took until it was committed",
        panel="Checkpoint",
    ),
)

PROMPTS = (
    _prompts(
        "answered", "counter", "prompts", "Prompts that a model has answered, with all responses", "Prompts"
    ),
    _prompts("tokens", "counter", "tokens", "Tokens of these responses", "Tokens"),
    _prompts(
        "tokens_per_s",
        "gauge",
        "tokens/s",
        "The same per second since this command began",
        "Tokens per second",
    ),
    _prompts("remaining", "gauge", "prompts", "Prompts still to be answered", "Prompts remaining"),
)

RLHF = (
    _rlhf("step", unit="iterations", help="Iterations done", panel="Iteration"),
    _rlhf("score", unit="", help="Mean score of a response by the reward model", panel="Score"),
    _rlhf("kl", unit="nats", help="KL divergence from the chat model, per response", panel="KL"),
    _rlhf(
        "kl_token",
        unit="nats",
        help="The same per token, by an estimator that is never negative",
        panel="KL per token",
    ),
    _rlhf(
        "kl_step",
        unit="nats",
        help="Per token, between the policy that sampled and the updated one",
        panel="KL per token",
    ),
    _rlhf("beta", unit="", help="Coefficient of the KL penalty", panel="KL coefficient"),
    _rlhf("entropy", unit="nats", help="Of the policy, per token", panel="Entropy"),
    _rlhf("length", unit="tokens", help="Mean length of a response", panel="Response length"),
    _rlhf("cut", unit="share", help="Responses cut off at the limit", panel="Shares"),
    _rlhf("clipped", unit="share", help="Tokens whose probability ratio was clipped", panel="Shares"),
    _rlhf(
        "explained_variance",
        unit="share",
        help="Of the returns' variance, what the critic's values explain",
        panel="Explained variance",
    ),
    _rlhf("policy_loss", unit="", help="PPO's clipped objective, negated", panel="Losses"),
    _rlhf("value_loss", unit="", help="The critic's", panel="Losses"),
    _rlhf("policy_grad_norm", unit="", help="Before clipping", panel="Gradient norms"),
    _rlhf("critic_grad_norm", unit="", help="Before clipping", panel="Gradient norms"),
    _rlhf(
        "engine_difference",
        unit="nats",
        help="Mean difference of a token's log-probability between engine and learner",
        panel="Engine against learner",
    ),
    _rlhf(
        "generate_seconds", unit="seconds", help="Of an iteration: sampling", panel="Seconds per iteration"
    ),
    _rlhf("score_seconds", unit="seconds", help="Of an iteration: scoring", panel="Seconds per iteration"),
    _rlhf("learn_seconds", unit="seconds", help="Of an iteration: learning", panel="Seconds per iteration"),
    _rlhf(
        "send_seconds",
        unit="seconds",
        help="Of an iteration: sending weights to the engines",
        panel="Seconds per iteration",
    ),
    _rlhf(
        "engine_deaths",
        kind="counter",
        unit="engines",
        help="Engines that died and were replaced",
        panel="Engine deaths",
    ),
)

SERVING = (
    _serving(
        "requests",
        "counter",
        "requests",
        "Requests answered, by HTTP status; 499 if the client left first",
        "Requests",
        labels=("model", "endpoint", "status"),
    ),
    _serving("prompt_tokens", "counter", "tokens", "Tokens of accepted prompts", "Tokens"),
    _serving("generated_tokens", "counter", "tokens", "Tokens generated", "Tokens"),
    _serving(
        "time_to_first_token_seconds",
        "histogram",
        "seconds",
        "From an accepted request to its first token",
        "Time to first token",
        buckets=_SECONDS_TO_FIRST_TOKEN,
    ),
    _serving(
        "request_seconds",
        "histogram",
        "seconds",
        "From a request to the last byte of its answer",
        "Time of a request",
        labels=("model", "endpoint"),
        buckets=_SECONDS_OF_A_REQUEST,
    ),
    _serving("running", "gauge", "sequences", "Sequences being generated", "Sequences", combine="sum"),
    _serving("waiting", "gauge", "sequences", "Sequences in the queue", "Sequences", combine="sum"),
)

METRICS: tuple[Metric, ...] = (*UNITS, *TRAINING, *PROMPTS, *RLHF, *SERVING)


def declared(group: str) -> dict[str, Metric]:
    """A group's metrics by name. Raises KeyError if there is no such group."""
    found = {metric.name: metric for metric in METRICS if metric.group == group}
    if not found:
        raise KeyError(f"no metrics are declared for {group!r}; groups are {', '.join(groups())}")
    return found


def groups(metrics: Iterable[Metric] = METRICS) -> tuple[str, ...]:
    """The groups, in order."""
    return tuple(dict.fromkeys(metric.group for metric in metrics))
