"""`manta import` and `manta export`: a directory of transformers', a model here, a directory again."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError
from llm.models.load import build, load_model, save_model
from llm.models.presets import model_config
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.special import (
    ADDED_PIECES,
    ASSISTANT_ID,
    BOS_ID,
    END_ID,
    EOS_ID,
    PAD_ID,
    mask_id,
    sentinel_id,
)
from llm.tokenizer.train import train_tokenizer
from pipelines.check_model import check_language_model
from pipelines.cli import run
from pipelines.import_model.config import ImportConfig
from pipelines.import_model.stage import import_directory
from pipelines.write_model import write_language_model
from tests.byte_level_forms import FORMS, save_tokenizer
from tests.byte_level_forms import TEXTS as FORM_TEXTS
from tests.byte_level_forms import save_model as save_form

torch.set_num_threads(1)
transformers = pytest.importorskip("transformers")

TEXTS = ["The quick brown fox jumps over the lazy dog", "  two  spaces\n\n\ttab naïve 日本 <s>", "", " "]
LLAMA = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": -1,
}
T5 = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def foreign_tokenizer(model_type: str, **ids: int) -> bytes:
    """A SentencePiece model with special ids and pieces of its own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:2] * 50),
        model_writer=model,
        model_type=model_type,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def import_(directory: Path, root: Path, name: str = "mine", **more: Any) -> Artifact:
    return import_directory(ImportConfig(directory=str(directory), name=name, root=str(root), **more))


def exported(root: Path, target: Path, *flags: str, name: str = "mine") -> Path:
    assert run(["export", f"models/{name}", "--to", str(target), "--root", str(root), *flags]) == 0
    return target


@pytest.fixture
def llama2(tmp_path: Path) -> Path:
    """As Llama 2 is published: a BPE model whose special pieces are <unk>, <s> and </s>."""
    directory = tmp_path / "llama2"
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(foreign_tokenizer("bpe"))
    return directory


def test_a_sentencepiece_model_gets_our_ids_and_its_rows_move_along(llama2: Path, tmp_path: Path) -> None:
    artifact = import_(llama2, tmp_path / "root")
    assert list(verify(artifact)) == []
    folder = artifact.fetch()
    ours, tokenizer = load_model(folder)[0], load_tokenizer(folder)
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama2).eval()
    original = sentencepiece.SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))
    assert tokenizer.vocab_size == len(original) + 5  # <pad> and the four chat symbols
    for text in TEXTS[:2]:
        ids, before = tokenizer.encode(text), original.encode(text)
        assert len(ids) == len(before)
        got = ours(torch.tensor([[BOS_ID, *ids]]))[0]
        expected = theirs(torch.tensor([[1, *before]])).logits[0]
        torch.testing.assert_close(got[:, ids], expected[:, before], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[:, EOS_ID], expected[:, 2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[:, ASSISTANT_ID], expected.mean(-1), atol=1e-5, rtol=1e-5)
        assert tokenizer.decode(ids) == original.decode(before)

    back = exported(tmp_path / "root", tmp_path / "back")
    auto = transformers.AutoTokenizer.from_pretrained(back)
    assert [auto.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    again = transformers.AutoModelForCausalLM.from_pretrained(back)
    assert (again.config.bos_token_id, again.config.eos_token_id) == (BOS_ID, EOS_ID)
    torch.testing.assert_close(again(torch.tensor([ids])).logits, ours(torch.tensor([ids]))[..., :305])

    # What we exported has a tokenizer of ours, and comes back as it was.
    returned = import_(back, tmp_path / "root", "returned")
    assert returned.read("tokenizer.model") == artifact.read("tokenizer.model")
    assert returned.read("weights.safetensors") == artifact.read("weights.safetensors")


def test_t5_keeps_its_sentinels(tmp_path: Path) -> None:
    directory = tmp_path / "t5"
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, decoder_start_token_id=0)
    ).save_pretrained(directory)
    model = foreign_tokenizer("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (directory / "spiece.model").write_bytes(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    added = {"<extra_id_1>": pieces, "<extra_id_0>": pieces + 1, "[NEW]": pieces + 2}
    (directory / "added_tokens.json").write_text(json.dumps(added))
    artifact = import_(directory, tmp_path / "root")
    tokenizer = load_tokenizer(artifact.fetch())
    assert tokenizer.vocabulary().splitlines()[-1] == "[NEW]\t0"
    back = exported(tmp_path / "root", tmp_path / "back")
    theirs, again = (transformers.AutoModelForSeq2SeqLM.from_pretrained(each) for each in (directory, back))
    generation = again.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (EOS_ID, PAD_ID)
    assert generation.decoder_start_token_id == PAD_ID
    last = sentinel_id(tokenizer.vocab_size, 0)
    assert transformers.AutoTokenizer.from_pretrained(back).convert_tokens_to_ids("<extra_id_0>") == last
    returned = import_(back, tmp_path / "root", "returned")
    assert returned.read("weights.safetensors") == artifact.read("weights.safetensors")
    before = {
        "input_ids": torch.tensor([[pieces + 1, 1]]),
        "decoder_input_ids": torch.tensor([[0, pieces + 1]]),
    }
    after = {"input_ids": torch.tensor([[last, EOS_ID]]), "decoder_input_ids": torch.tensor([[PAD_ID, last]])}
    torch.testing.assert_close(
        again(**after).logits[..., [EOS_ID, last]],
        theirs(**before).logits[..., [1, pieces + 1]],
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_model_without_sentencepiece_is_exported_as_it_came_and_refused_elsewhere(tmp_path: Path) -> None:
    directory = tmp_path / "gpt2"
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, eos_token_id=[299, 7])
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    (directory / "vocab.json").write_text('{"a": 0}')
    artifact = import_(directory, tmp_path / "root")
    assert "tokenizer.model" not in artifact.files
    with pytest.raises(UserError, match="no tokenizer that Manta can use"):
        check_language_model("model", artifact)

    back = exported(tmp_path / "root", tmp_path / "back", "--dtype", "bf16")
    assert (back / "vocab.json").read_text() == '{"a": 0}'
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    again = transformers.AutoModelForCausalLM.from_pretrained(back)
    assert again.dtype == torch.bfloat16
    assert again.config.eos_token_id == [299, 7]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.bfloat16()), name


@pytest.mark.parametrize("form", FORMS)
def test_a_byte_level_tokenizer_gets_our_ids_and_its_rows_move_along(form: str, tmp_path: Path) -> None:
    directory = tmp_path / form
    save_form(form, directory)
    artifact = import_(directory, tmp_path / "root")
    check_language_model("model", artifact)
    folder = artifact.fetch()
    ours, tokenizer = load_model(folder)[0], load_tokenizer(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    original = transformers.AutoTokenizer.from_pretrained(directory)
    row = {name: getattr(original, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for text in [*TEXTS[:2], "<|endoftext|> 日本<think>"]:
        ids = tokenizer.encode(text)
        before = original.encode(text, add_special_tokens=False, split_special_tokens=True)
        got = ours(torch.tensor([[EOS_ID, *ids]]))[0]
        expected = theirs(torch.tensor([[row["eos"], *before]])).logits[0]
        torch.testing.assert_close(got[:, ids], expected[:, before], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[:, EOS_ID], expected[:, row["eos"]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[:, ASSISTANT_ID], expected.mean(-1), atol=1e-5, rtol=1e-5)
        if form == "llama3":
            torch.testing.assert_close(got[:, BOS_ID], expected[:, row["bos"]], atol=1e-5, rtol=1e-5)

    back = exported(tmp_path / "root", tmp_path / "back")
    auto = transformers.AutoTokenizer.from_pretrained(back)
    assert auto.eos_token_id == EOS_ID
    for text in [*TEXTS, *FORM_TEXTS, "<|user|>"]:
        assert auto.encode(text, split_special_tokens=True) == tokenizer.encode(text)
    messages = [{"role": "user", "content": "the fox?"}]
    prompt = auto.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt == encode_prompt(tokenizer, messages)
    again = transformers.AutoModelForCausalLM.from_pretrained(back)
    torch.testing.assert_close(
        again(torch.tensor([ids])).logits, ours(torch.tensor([ids]))[..., : len(tokenizer)]
    )

    # What we exported has a tokenizer of ours, and comes back as it was.
    returned = import_(back, tmp_path / "root", "returned")
    assert returned.read("tokenizer.json") == artifact.read("tokenizer.json")
    assert returned.read("weights.safetensors") == artifact.read("weights.safetensors")


def with_prefix_space(directory: Path) -> None:
    content = json.loads((directory / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (directory / "tokenizer.json").write_text(json.dumps(content))


def with_more_pieces_than_the_model(directory: Path) -> None:
    save_tokenizer("gpt2", directory, merges=140)


def with_another_file(directory: Path) -> None:
    (directory / "added_tokens.json").write_text('{"<x>": 377}')


def with_a_damaged_one(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": "<x>"}}')


def without_a_file(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_prefix_space, "tokenizer.json: add_prefix_space is true; only a pre_tokenizer without it can"),
        (with_more_pieces_than_the_model, "tokenizer.json: has an id 396, the model 388 ids"),
        (with_another_file, "tokenizer.json: has no piece '<x>' with the id 377, and other files say so"),
        (with_a_damaged_one, "tokenizer_config.json or added_tokens.json is not as it should be: TypeError"),
        (without_a_file, "there is neither a SentencePiece model nor a tokenizer.json"),
    ],
)
def test_a_tokenizer_that_we_cannot_vouch_for_stays_behind(
    change: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, root = tmp_path / "gpt2", tmp_path / "root"
    save_form("gpt2", directory)
    change(directory)
    for _ in range(2):  # the second time it is only found
        assert run(["import", str(directory), "--name", "mine", "--root", str(root)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"has no tokenizer that Manta can use ({reason}" in said
    artifact = ArtifactStore(root).resolve("models", "mine")
    with pytest.raises(UserError, match="no tokenizer that Manta can use") as refused:
        check_language_model("model", artifact)
    assert reason in str(refused.value)
    back = exported(root, tmp_path / "back")
    kept = {each.name: each.read_bytes() for each in directory.glob("*token*")}
    assert kept.items() <= {each.name: each.read_bytes() for each in back.iterdir()}.items()


def test_the_same_directory_is_imported_once_and_another_one_is_another_version(
    llama2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", "mine", "--root", str(tmp_path / "root")]
    assert run(["import", str(llama2), *arguments]) == 0
    moved = llama2.rename(tmp_path / "moved")
    assert run(["import", str(moved), *arguments]) == 0
    assert "already done" in capsys.readouterr().out
    (moved / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert run(["import", str(moved), *arguments]) == 0
    assert len(ArtifactStore(tmp_path / "root").artifacts("models")) == 2


def test_mistakes_are_one_line(llama2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *arguments: object) -> None:
        assert run([*map(str, arguments), "--root", str(tmp_path / "root")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    (empty := tmp_path / "empty").mkdir()
    refused("there is no such folder here", "import", "meta-llama/Llama-2-7b-hf", "--name", "a")
    refused("there is no config.json in it", "import", empty, "--name", "a")
    config = json.loads((llama2 / "config.json").read_text())
    (llama2 / "config.json").write_text(json.dumps(config | {"hidden_act": "tanh"}))
    refused('hidden_act is "tanh"', "import", llama2, "--name", "a")
    refused("no models/a under", "export", "a", "--to", empty)
    assert ArtifactStore(tmp_path / "root").artifacts() == []

    (llama2 / "config.json").write_text(json.dumps(config))
    artifact = import_(llama2, tmp_path / "root", "a")  # the mistakes before are not in the way
    refused("there is something already", "export", "a", "--to", llama2)
    weights = artifact.fetch() / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("weights.safetensors: has", "export", "a", "--to", empty)
    assert list(empty.iterdir()) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "llama2", "root"]


def test_a_chat_model_ends_its_turns_and_a_reward_model_stays_here(tmp_path: Path) -> None:
    config = model_config("tiny-100k", 320)
    for name, head in (("chat", "lm"), ("reward", "scalar")):
        draft = ArtifactStore(tmp_path).begin(
            kind="models", name=name, stage="made", logic_version=1, what={}, inputs={}
        )
        assert isinstance(draft, Draft)
        model = build(config, head).to_empty(device="cpu")
        model.init_weights(seed=3)
        draft.write("tokenizer.model", train_tokenizer(TEXTS[:2] * 50, vocab_size=320))
        draft.write("export/generation_config.json", json.dumps({"eos_token_id": END_ID}).encode())
        with draft.writing() as writing:
            save_model(writing.path, model.state_dict(), config, head)
        draft.commit({})
    (tmp_path / "out").mkdir()
    out = exported(tmp_path, tmp_path / "out", name="chat")  # into an empty folder
    assert transformers.AutoTokenizer.from_pretrained(out).eos_token == "<|end|>"
    assert transformers.AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == END_ID
    assert run(["export", "reward", "--to", str(tmp_path / "more"), "--root", str(tmp_path)]) == 2


@pytest.mark.parametrize("preset", ["t5-tiny", "bert-tiny"])
def test_a_trained_model_goes_out_with_the_pieces_of_its_family(tmp_path: Path, preset: str) -> None:
    tokenizer = train_tokenizer(TEXTS[:2] * 50, vocab_size=320)
    family = model_config(preset, 1).family
    config = model_config(preset, 320 + len(ADDED_PIECES[family]))
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=3)
    workspace = Workspace(Folder(ArtifactStore(tmp_path).storage, "models/a/b"))
    files = write_language_model(workspace, model.state_dict(), config, tokenizer, chats=False)
    assert {"weights.safetensors", "export/tokenizer.json", "export/model.safetensors"} <= set(files)
    theirs = transformers.AutoTokenizer.from_pretrained(workspace.path / "export")
    assert theirs.convert_ids_to_tokens(range(320, config.vocab_size)) == list(ADDED_PIECES[family])
    assert theirs.mask_token_id == (mask_id(320) if family == "encoder" else None)
    classes = {
        "encoder": transformers.AutoModelForMaskedLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }
    again = classes[family].from_pretrained(workspace.path / "export")
    assert again.get_input_embeddings().weight.shape[0] == config.vocab_size


def test_a_shape_that_transformers_lacks_is_written_without_an_export(tmp_path: Path) -> None:
    config = model_config("tiny-100k", 320, position="alibi")
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=3)
    workspace = Workspace(Folder(ArtifactStore(tmp_path).storage, "models/a/b"))
    assert list(write_language_model(workspace, model.state_dict(), config, b"", chats=False)) == [
        "weights.safetensors"
    ]
