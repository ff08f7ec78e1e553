"""The reward model as a stage: models/CHAT + preferences/… → models/…"""

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.models.load import load_config
from pipelines.begin import begin
from pipelines.check_model import check_language_model
from pipelines.model_folder import CONFIG, prepare_model_folder
from pipelines.reward.config import RewardConfig
from pipelines.tokenizer_artifact import read_tokenizer

LOGIC_VERSION = 2


def resolve_inputs(config: RewardConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The chat model and the rankings. Raises UserError if one is missing or they do not belong together."""
    model = store.resolve("models", config.model)
    preferences = store.resolve("preferences", config.preferences)
    check_language_model("model", model)
    sampled_from = store.resolve("models", preferences.manifest["inputs"]["model"]["ref"])
    if read_tokenizer(sampled_from) != read_tokenizer(model):
        raise UserError(
            f"{preferences.ref} holds ids of another tokenizer than that of {model.ref}; "
            "give the chat model that they were sampled from"
        )
    return {"model": model, "preferences": preferences}


def run(config: RewardConfig, cluster: Cluster) -> Artifact:
    """Train, or go on training, and commit the model."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    draft = begin(config, inputs, kind="models", stage="reward", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    model, preferences = inputs["model"], inputs["preferences"]
    shape, _ = load_config(model.fetch(CONFIG))
    prepare_model_folder(draft, shape, model, head="scalar")

    # Ray Train takes seconds to import, and there was nothing to do until here.
    from pipelines.reward.worker import reward_steps, reward_worker
    from pipelines.training_launch import run_training

    counts = run_training(
        reward_worker,
        stage="reward",
        config=config,
        cluster=cluster,
        model=shape,
        draft=draft,
        inputs={"model": model, "preferences": preferences},
        steps=reward_steps(config, preferences.counts["train_rankings"]),
    )
    return draft.commit(counts)
