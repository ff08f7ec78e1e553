"""RLHF as a stage: models/CHAT + models/REWARD + corpora/CONVERSATIONS → models/…"""

import time
from typing import TYPE_CHECKING

from cluster.artifacts.folder import FileEntry
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.artifacts.workspace import Workspace
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.alignment.kl import AdaptiveKL
from llm.models.config import ModelConfig
from llm.models.load import load_config
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.begin import begin
from pipelines.check_model import check_context, check_head, check_language_model
from pipelines.model_folder import CONFIG, attachments, prepare_model_folder
from pipelines.progress import stage_progress
from pipelines.prompts import check_conversations, load_prompts
from pipelines.rlhf.config import RLHFConfig
from pipelines.tokenizer_artifact import load_tokenizer, read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

LOGIC_VERSION = 3
LOGS = ("metrics.jsonl", "samples.jsonl", "timing.jsonl")


def resolve_inputs(config: RLHFConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """Chat model, reward model and conversations. Raises UserError if one is missing or does not fit."""
    model = store.resolve("models", config.model)
    reward_model = store.resolve("models", config.reward_model)
    corpus = store.resolve("corpora", config.corpus)
    check_conversations(corpus)
    check_language_model("model", model)
    check_head("reward-model", reward_model, "scalar")
    check_context(model, config.max_prompt_tokens + config.max_tokens)
    check_context(reward_model, config.max_prompt_tokens + config.max_tokens)
    if read_tokenizer(model) != read_tokenizer(reward_model):
        raise UserError(
            f"{model.ref} and {reward_model.ref} have different tokenizers; "
            "train a reward model on preferences that this chat model gave rise to"
        )
    return {"model": model, "reward_model": reward_model, "corpus": corpus}


def run(config: RLHFConfig, cluster: Cluster) -> Artifact:
    """Align, or go on aligning, and commit the model."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    draft = begin(config, inputs, kind="models", stage="rlhf", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    model = inputs["model"]
    shape, _ = load_config(model.fetch(CONFIG))
    prepare_model_folder(draft, shape, model)
    tokenizer = load_tokenizer(model)
    workspace = draft.workspace
    workspace.restore(list(LOGS))
    prompts = load_prompts(
        inputs["corpus"],
        tokenizer,
        split="train",
        seed=config.seed,
        limit=config.prompts,
        max_tokens=config.max_prompt_tokens,
    )
    if len(prompts) < config.rollouts:
        raise UserError(
            f"--rollouts {config.rollouts}: there are only {len(prompts)} prompts; ask for that many"
        )

    # Ray and the actors' modules take seconds to import, and there was nothing to do until here.
    import ray

    from llm.training.last_checkpoints import Noticed
    from pipelines.rlhf.actors import start_actors
    from pipelines.rlhf.loop import Start, align
    from pipelines.rlhf.notice import notices
    from pipelines.rlhf.run_log import RunLog
    from pipelines.run_metrics import RunMetrics

    with (
        start_actors(config, cluster, model, inputs["reward_model"], workspace, draft.ticket) as (
            actors,
            state,
        ),
        stage_progress("rlhf", config.iterations, "iteration") as progress,
        RunMetrics("rlhf", config, "rlhf", draft.version, workspace) as run_metrics,
    ):
        beta = state["beta"] if state else config.kl.beta
        start = Start(state["step"] if state else 0, AdaptiveKL(beta, config.kl.target, config.kl.horizon))
        log = RunLog(workspace.path, start.iteration, tokenizer, progress, run_metrics, draft.ticket)
        notice = Noticed(notices(actors.nodes, progress.say))

        def checkpoint(iteration: int, kl: AdaptiveKL) -> None:
            notice.saving(iteration)
            began = time.perf_counter()
            log.flush(durable=True)
            workspace.publish(list(LOGS))
            state, attached = {"beta": kl.beta}, attachments(draft)
            ray.get([each.save.remote(iteration, state, attached) for each in actors.learners])
            # It is not committed yet. Whatever the next would wait for it counts as holding up.
            notice.saved(iteration, time.perf_counter() - began)

        align(actors, prompts, start, config, log.record, checkpoint, asked_for=notice.wanted)
        weights = ray.get([each.weights.remote() for each in actors.learners])[0]
        draft.ticket.check()  # which says in a line why the last checkpoint was not kept, if it was not
        ray.get([each.finish_checkpoint.remote() for each in actors.learners])
        draft.note(engine_deaths=actors.engines.deaths)
    draft.include(write_weights(workspace, weights, shape, tokenizer))
    return draft.commit(log.counts())


def write_weights(
    workspace: Workspace, weights: "dict[str, Tensor]", shape: ModelConfig, tokenizer: Tokenizer
) -> dict[str, FileEntry]:
    """Write the model in our form and in Hugging Face's."""
    from pipelines.write_model import write_language_model

    return write_language_model(workspace, weights, shape, tokenizer.model, chats=True)
