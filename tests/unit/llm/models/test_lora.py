"""Adapters against an explicit W + (α / r) B A, and against transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llm.models.decoder import Decoder
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.hugging_face.adapter import FILES, export_adapter
from llm.models.hugging_face.directory import export_model
from llm.models.hugging_face.fields import Unsupported
from llm.models.lora import adapter_count, add_adapters, initial_adapters, merge_adapters
from llm.models.lora_config import LoraConfig
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.step import train_step

LORA = LoraConfig(rank=3, alpha=12)
LLAMA = model_config("tiny-100k", 100, d_model=32, d_ff=48, n_heads=4, n_kv_heads=2)
GPT2 = LLAMA.model_copy(update={"position": "learned", "norm": "layer", "gated": False, "bias": True})
T5 = model_config("t5-v1.1-small", 100, d_model=32, d_ff=48, n_heads=4, n_kv_heads=4, head_dim=8).model_copy(
    update={"n_layers": 2, "n_encoder_layers": 3}
)
TOKENS = torch.randint(0, 100, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("config", [LLAMA, T5], ids=["decoder", "encoder-decoder"])
def test_adapters_are_counted_without_making_them(config):
    parameters = adapted(config).parameters()
    assert adapter_count(config, LORA) == sum(p.numel() for p in parameters if p.requires_grad)


def base_model(config=LLAMA):
    model = (EncoderDecoder if config.family == "encoder-decoder" else Decoder)(config)
    model.init_weights(seed=1)
    return model


def adapted(config=LLAMA, lora=LORA, trained=True):
    """A model with adapters, whose B are 0 unless `trained`."""
    model = base_model(config)
    add_adapters(model, lora)
    model.load_state_dict(initial_adapters(model, seed=2), strict=False)
    if trained:
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                random = torch.Generator().manual_seed(len(name) + parameter.numel())
                parameter.data.normal_(0, 0.1, generator=random)
    return model


def explicit(state, lora):
    """Names and values of a plain state dict with B A added row by row, where each part's rows stand."""
    weights = {name: value for name, value in state.items() if ".adapters." not in name}
    q, kv = LLAMA.n_heads * LLAMA.head_dim, LLAMA.n_kv_heads * LLAMA.head_dim
    first_rows = {"qkv.k": q, "qkv.v": q + kv, "gate_up.up": LLAMA.d_ff}
    for name, a in state.items():
        if name.endswith(".a"):
            matrix, _, part = name.removesuffix(".a").partition(".adapters.")
            b = state[f"{name.removesuffix('.a')}.b"]
            first = first_rows.get(f"{matrix.rpartition('.')[2]}.{part}", 0)
            whole = weights[f"{matrix}.weight"]
            padding = (0, 0, first, whole.shape[0] - first - b.shape[0])
            update = torch.nn.functional.pad(b @ a, padding)
            weights[f"{matrix}.weight"] = whole + lora.alpha / lora.rank * update
    return weights


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_fresh_adapters_change_no_bit(config):
    assert torch.equal(adapted(config, trained=False)(TOKENS), base_model(config)(TOKENS))


@pytest.mark.parametrize("targets", ["attention", "mlp", "attention,mlp"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_gradients_are_those_of_the_explicit_matrix(config, targets):
    lora = LoraConfig(rank=3, alpha=12, targets=targets)
    model = adapted(config, lora).double()
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    logits = torch.func.functional_call(base_model(config).double(), explicit(leaves, lora), (TOKENS,))
    logits.square().sum().backward()
    model(TOKENS).square().sum().backward()
    torch.testing.assert_close(model(TOKENS), logits, rtol=1e-12, atol=1e-12)
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    parts = 4 * ("attention" in targets) + (3 if config.gated else 2) * ("mlp" in targets)
    assert len(trained) == config.n_layers * parts * 2
    for name in trained:
        assert ".adapters." in name
        torch.testing.assert_close(model.get_parameter(name).grad, leaves[name].grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_merged_is_a_plain_model_that_computes_the_same(config):
    model = adapted(config)
    merged = base_model(config)
    assert not torch.allclose(merged(TOKENS), model(TOKENS), atol=0.1)
    state = dict(sorted(model.state_dict().items(), reverse=True))
    merged.load_state_dict(merge_adapters(state, config, LORA))
    torch.testing.assert_close(merged(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-5)


def test_only_adapters_are_trained_and_have_optimizer_state():
    model = adapted(trained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    batch = [(TOKENS, next_token_targets(TOKENS))]
    for _ in range(2):  # at first B is 0, and A has no gradient
        train_step(model, optimizer, batch, language_model_loss(model), 1e-2, clip_norm=1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (".adapters." not in name), name

    q, kv, d, ff = 4 * 8, 2 * 8, 32, 48
    in_and_out = [d + q, d + kv, d + kv, q + d, d + ff, d + ff, ff + d]
    adapters = LLAMA.n_layers * LORA.rank * sum(in_and_out)
    moments = [s[key].numel() for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert sum(moments) == 2 * adapters


def test_what_an_adapter_starts_from_depends_on_seed_and_name_alone():
    values = initial_adapters(adapted(), seed=5)
    alone = initial_adapters(adapted(lora=LoraConfig(rank=3, targets="mlp")), seed=5)
    assert 0 < len(alone) < len(values)
    assert all(torch.equal(values[name], value) for name, value in alone.items())
    name = "blocks.0.attention.qkv.adapters.q.a"
    others = [values["blocks.0.attention.qkv.adapters.k.a"], initial_adapters(adapted(), seed=6)[name]]
    assert not any(torch.equal(values[name], other) for other in others)
    wide = initial_adapters(adapted(lora=LoraConfig(rank=500)), seed=5)
    assert wide[name].std().item() == pytest.approx(32**-0.5, rel=0.03)
    assert wide["blocks.0.mlp.down.adapters.down.a"].std().item() == pytest.approx(48**-0.5, rel=0.03)


def test_experts_have_no_adapters():
    experts = LLAMA.model_copy(update={"n_experts": 4, "experts_per_token": 2})
    with pytest.raises(ValueError, match="targets=attention,mlp: experts have no adapters; use attention"):
        add_adapters(base_model(experts), LORA)


@pytest.mark.parametrize("targets", ["attention", "mlp", "attention,mlp"])
def test_transformers_with_the_exported_adapter_computes_the_same(tmp_path, targets):
    """What peft does with the two files, written out."""
    transformers = pytest.importorskip("transformers")
    lora = LoraConfig(rank=3, alpha=12, targets=targets)
    model = adapted(lora=lora)
    export_model(base_model().state_dict().__getitem__, LLAMA, tmp_path / "export")
    export_adapter(model.state_dict(), LLAMA, lora, tmp_path / "adapter", base="models/base/1/export")

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    fields = json.loads((tmp_path / "adapter" / FILES[0]).read_text())
    tensors = load_file(tmp_path / "adapter" / FILES[1])
    adapted_modules = set()
    for name, module in theirs.named_modules():
        if name.rpartition(".")[2] in fields["target_modules"]:
            a = tensors.pop(f"base_model.model.{name}.lora_A.weight")
            b = tensors.pop(f"base_model.model.{name}.lora_B.weight")
            assert a.shape[0] == b.shape[1] == fields["r"]
            module.weight.data += fields["lora_alpha"] / fields["r"] * b @ a
            adapted_modules.add(name)
    assert not tensors
    assert len(adapted_modules) == LLAMA.n_layers * (4 * ("attention" in targets) + 3 * ("mlp" in targets))
    torch.testing.assert_close(model(TOKENS)[..., :100], theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_the_format_cannot_say_is_not_written(tmp_path):
    """transformers has q, k and v of GPT-2 in one matrix."""
    config = GPT2.model_copy(update={"n_kv_heads": GPT2.n_heads})
    with pytest.raises(Unsupported, match=r"c_attn\.weight is q and k and v in one, whose adapters"):
        export_adapter(adapted(config).state_dict(), config, LORA, tmp_path / "adapter", base="base")
    assert not (tmp_path / "adapter").exists()


def test_both_stacks_of_an_encoder_decoder_and_what_is_between_them_have_adapters(tmp_path):
    """Merged, and as transformers with the exported adapter computes it."""
    transformers = pytest.importorskip("transformers")
    model, read = adapted(T5), TOKENS.flip(1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (3 * 7 + 2 * 11)
    fresh = adapted(T5, trained=False)
    with torch.no_grad():  # A relative bias that learns has another kernel than one that is frozen.
        assert torch.equal(fresh(read, TOKENS), base_model(T5)(read, TOKENS))
    expected = model(read, TOKENS)
    assert not torch.allclose(fresh(read, TOKENS), expected, atol=0.1)
    merged = base_model(T5)
    merged.load_state_dict(merge_adapters(model.state_dict(), T5, LORA))
    torch.testing.assert_close(merged(read, TOKENS), expected, rtol=1e-5, atol=1e-5)

    export_model(base_model(T5).state_dict().__getitem__, T5, tmp_path / "export")
    export_adapter(model.state_dict(), T5, LORA, tmp_path / "adapter", base="models/base/1/export")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export").eval()
    fields = json.loads((tmp_path / "adapter" / FILES[0]).read_text())
    assert fields["task_type"] == "SEQ_2_SEQ_LM"
    tensors = load_file(tmp_path / "adapter" / FILES[1])
    for name, module in theirs.named_modules():
        if name.rpartition(".")[2] in fields["target_modules"]:
            a, b = (tensors.pop(f"base_model.model.{name}.lora_{each}.weight") for each in "AB")
            module.weight.data += fields["lora_alpha"] / fields["r"] * b @ a
    assert not tensors
    logits = theirs(input_ids=read, decoder_input_ids=TOKENS).logits
    torch.testing.assert_close(expected[..., :100], logits, rtol=1e-4, atol=1e-4)
