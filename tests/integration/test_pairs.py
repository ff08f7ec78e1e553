"""A new encoder-decoder learns pairs, is tuned further with adapters, and its answers are measured."""

import json

import pytest
import ray

from cluster.connect import Cluster, start_local
from llm.engine.encoder_decoder import answer_all
from llm.evaluation.text_match import text_match
from llm.models.load import load_model
from llm.tokenizer.load import load_tokenizer
from pipelines.command_line import parse
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate.config import EvaluateConfig
from pipelines.finetune import stage as finetune
from pipelines.finetune.config import FinetuneConfig
from tests.integration.small_artifacts import small_store

TRAINED = """--corpus small --max-seq-len 16 --max-target-len 64 --global-batch 8 --packing --precision fp32
    --optimizer.learning-rate 1e-2 --optimizer.warmup-steps 5 --threads-per-worker 1 --wandb disabled"""


def tuned(root, options):
    config = parse(FinetuneConfig, "finetune", ["--root", str(root), *TRAINED.split(), *options.split()])
    return finetune.run(config, Cluster())


def test_pairs_are_learned_and_answers_measured(tmp_path):
    store = small_store(tmp_path)
    start_local(num_cpus=2)
    try:
        new = tuned(tmp_path, "--name new --model.preset t5-tiny --tokenizer small --epochs 20")
        more = tuned(tmp_path, "--name more --base new --epochs 2 --lora.rank 4")
        config = EvaluateConfig(
            root=str(tmp_path), model="more", baseline="new", corpus="small", max_tokens=40, max_batch=7
        )
        evaluation = evaluate.run(config, Cluster())
    finally:
        ray.shutdown()

    assert new.manifest["inputs"].keys() == {"tokenizer", "corpus"}
    assert "base_heldout_loss" not in new.counts
    assert new.counts["train_conversations"] == 140
    assert new.counts["heldout_loss"] < 3, "knowing nothing costs ln 484 = 6.2"
    assert more.counts["base_heldout_loss"] == pytest.approx(new.counts["heldout_loss"], rel=1e-4)
    assert (new.fetch() / "export" / "model.safetensors").is_file()

    samples = [json.loads(line) for line in (evaluation.fetch() / "samples.jsonl").read_text().splitlines()]
    results = json.loads((evaluation.fetch() / "results.json").read_text())
    assert len(samples) == results["prompts"] > 10
    references = [sample["reference"] for sample in samples]
    for role, name in (("model", "more"), ("baseline", "new")):
        folder = store.resolve("models", name).fetch()
        model, _ = load_model(folder)
        tokenizer = load_tokenizer(folder)
        sources = [[*tokenizer.encode(sample["prompt"]), tokenizer.eos_id] for sample in samples]
        ids = answer_all(
            model,
            sources,
            batch_size=1,
            start_id=tokenizer.pad_id,
            pad_id=tokenizer.pad_id,
            stop_id=tokenizer.eos_id,
            max_tokens=40,
        )
        assert [sample[role] for sample in samples] == [tokenizer.decode(each) for each in ids]
        expected = text_match([sample[role] for sample in samples], references)
        assert results["bleu"][role] == expected.bleu
        assert results["exact_match"][role] == expected.exact.to_json()
    copied = text_match([sample["prompt"] for sample in samples], references)
    assert results["trivial"]["question"] == {"exact_match": copied.exact.value, "bleu": copied.bleu}
    assert results["bleu_signature"] == copied.signature
