"""The quickstart's stages in order, each with its configuration: what `manta STAGE` would be told by hand."""

from dataclasses import dataclass
from typing import Any

from pipelines.corpus.config import CorpusConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.finetune.config import FinetuneConfig
from pipelines.model_options import ModelOptions
from pipelines.preferences.config import PreferencesConfig
from pipelines.pretrain.config import PretrainConfig
from pipelines.quickstart.config import QuickstartConfig
from pipelines.reward.config import RewardConfig
from pipelines.rlhf.config import RLHFConfig
from pipelines.stage_config import StageConfig
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokens.config import TokensConfig
from pipelines.training_config import OptimizerConfig

# Names of the artifacts.
TEXT, FUNCTIONS = "python-stdlib", "python-functions"
TOKENS = TOKENIZER = "python-stdlib"
BASE, CHAT, REWARD, ALIGNED = "base", "chat", "reward", "aligned"
PREFERENCES, EVALUATION = "simulated-reviewers", "aligned-against-chat"


@dataclass(frozen=True)
class Step:
    """One stage of the chain: the package that runs it, its configuration, and what to call it."""

    stage: str
    config: StageConfig
    title: str


def chain(config: QuickstartConfig) -> list[Step]:
    """All steps. The smoke scale is the same chain with everything made small."""
    return [*_text_to_base_model(config), *_base_to_aligned_model(config)]


def _text_to_base_model(config: QuickstartConfig) -> list[Step]:
    sized, common, small = _Sized(config.scale), _common(config), _small_units()
    source: dict[str, Any] = (
        {"source": "python-stdlib"}
        if config.source == "python-stdlib"
        else {"source": "files", "paths": (config.source,)}
    )
    model: dict[str, Any] = sized(preset=("quickstart-1m", "tiny-100k"))
    return [
        Step(
            "corpus",
            CorpusConfig(**common, **small, name=TEXT, **source),
            "Clean the source text",
        ),
        Step(
            "tokenizer",
            TokenizerConfig(**common, **small, name=TOKENIZER, corpus=TEXT, **sized(vocab_size=(1024, 512))),
            "Train a tokenizer",
        ),
        Step(
            "tokens",
            TokensConfig(**common, **small, name=TOKENS, corpus=TEXT, tokenizer=TOKENIZER),
            "Tokenize",
        ),
        Step(
            "pretrain",
            PretrainConfig(
                **common,
                name=BASE,
                tokens=TOKENS,
                model=ModelOptions(**model),
                optimizer=OptimizerConfig(
                    learning_rate=3e-3,
                    min_learning_rate=0.0,
                    decay="linear",
                    beta2=0.98,
                    weight_decay=0.05,
                    **sized(warmup_steps=(240, 2), embedding_scale=(5.0, 1.0), head_scale=(2.0, 1.0)),
                ),
                global_batch=4,
                evaluate_every=500,
                checkpoint_every=500,
                **sized(steps=(4800, 40)),
            ),
            "Pre-train a base model",
        ),
    ]


def _base_to_aligned_model(config: QuickstartConfig) -> list[Step]:
    sized, common, small = _Sized(config.scale), _common(config), _small_units()
    sampling: dict[str, Any] = sized(max_tokens=(96, 24))
    return [
        Step(
            "corpus",
            CorpusConfig(**common, **small, name=FUNCTIONS, source="python-functions", from_corpus=TEXT),
            "Turn functions into conversations",
        ),
        Step(
            "finetune",
            FinetuneConfig(
                **common,
                name=CHAT,
                base=BASE,
                corpus=FUNCTIONS,
                epochs=1,
                evaluate_every=100,
                **sized(max_seq_len=(192, 96)),
            ),
            "Fine-tune it to answer",
        ),
        Step(
            "preferences",
            PreferencesConfig(
                **common,
                name=PREFERENCES,
                model=CHAT,
                corpus=FUNCTIONS,
                **sampling,
                **sized(prompts=(768, 32)),
            ),
            "Let simulated reviewers rank its answers",
        ),
        Step(
            "reward",
            RewardConfig(**common, name=REWARD, model=CHAT, preferences=PREFERENCES),
            "Train a reward model on the rankings",
        ),
        Step(
            "rlhf",
            RLHFConfig(
                **common,
                name=ALIGNED,
                model=CHAT,
                reward_model=REWARD,
                corpus=FUNCTIONS,
                **sampling,
                **sized(iterations=(18, 2), rollouts=(128, 16)),
            ),
            "Align it with PPO",
        ),
        Step(
            "evaluate",
            EvaluateConfig(
                **common,
                name=EVALUATION,
                model=ALIGNED,
                baseline=CHAT,
                tokens=TOKENS,
                corpus=FUNCTIONS,
                **sampling,
                **sized(prompts=(512, 16)),
            ),
            "Compare it with the fine-tuned model",
        ),
    ]


@dataclass(frozen=True)
class _Sized:
    """Chooses each field's full or smoke value."""

    scale: str

    def __call__(self, **sizes: tuple[Any, Any]) -> dict[str, Any]:
        return {name: full if self.scale == "full" else smoke for name, (full, smoke) in sizes.items()}


def _small_units() -> dict[str, Any]:
    """The text is small: two actors fit beside all else on a machine of 8 GB."""
    return {"memory_per_worker": 1.0}


def _common(config: QuickstartConfig) -> dict[str, Any]:
    return {"root": config.root, "address": config.address}
