"""Mixtures of experts against transformers' Mixtral and a naive rewrite in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.engine.engine import Engine
from llm.engine.generate import generate
from llm.engine.request import Request, SamplingParams
from llm.models.decoder import Decoder
from llm.models.experts import ExpertLinear, Experts
from llm.models.load import build
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE, next_token_targets
from llm.training.optimizer import SCALE
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from llm.training.step import train_step
from tests.unit.llm.engine.reference import generate_alone, lively_model
from tests.unit.ranks import on_ranks

torch.set_num_threads(1)
EXPERTS = {"n_experts": 4, "experts_per_token": 2}
CONFIG = model_config("tiny-100k", 100, d_model=32, d_ff=24, balance_coefficient=0.5, **EXPERTS)


def mixtral_twin(model: Decoder) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = model.config
    theirs = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.d_ff,
            num_local_experts=config.n_experts,
            num_experts_per_tok=config.experts_per_token,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    theirs.load_state_dict(as_mixtral(model.state_dict(), config))
    return theirs.eval()


def as_mixtral(state: dict[str, Tensor], config) -> dict[str, Tensor]:
    theirs = {
        "model.embed_tokens.weight": state["embed.weight"][: config.vocab_size],
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state["head.weight"][: config.vocab_size],
    }
    sizes = [heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
    for layer in range(config.n_layers):
        ours, to = f"blocks.{layer}", f"model.layers.{layer}"
        for name, rows in zip("qkv", state[f"{ours}.attention.qkv.weight"].split(sizes), strict=True):
            theirs[f"{to}.self_attn.{name}_proj.weight"] = rows
        theirs |= {
            f"{to}.self_attn.o_proj.weight": state[f"{ours}.attention.out.weight"],
            f"{to}.input_layernorm.weight": state[f"{ours}.attention_norm.weight"],
            f"{to}.post_attention_layernorm.weight": state[f"{ours}.mlp_norm.weight"],
            f"{to}.mlp.gate.weight": state[f"{ours}.mlp.router.weight"],
            f"{to}.mlp.experts.gate_up_proj": state[f"{ours}.mlp.gate_up.weight"],
            f"{to}.mlp.experts.down_proj": state[f"{ours}.mlp.down.weight"],
        }
    return theirs


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_logits_and_gradients_equal_mixtral(chosen):
    model = Decoder(model_config("mixtral-8x7b", 100, **SMALL | {"experts_per_token": chosen}))
    model.init_weights(seed=1)
    theirs = mixtral_twin(model)
    tokens = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(2))
    ours_out, theirs_out = model(tokens)[..., :100], theirs(tokens).logits
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=1e-5)
    weights = torch.randn(ours_out.shape, generator=torch.Generator().manual_seed(3))
    (ours_out * weights).sum().backward()
    (theirs_out * weights).sum().backward()
    gradients = as_mixtral({name: p.grad for name, p in model.named_parameters()}, model.config)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)


SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "n_experts": 4}


def router_losses_by_hand(logits: Tensor, chosen: int, balance: float, z: float) -> list[Tensor]:
    """Row by row and expert by expert, from the definitions; logits (batch, seq, n_experts)."""
    losses = []
    for row in logits:
        tokens, n = row.shape
        probabilities = row.exp() / row.exp().sum(-1, keepdim=True)
        loss = z * sum(row[t].exp().sum().log() ** 2 for t in range(tokens)) / tokens
        for expert in range(n):
            choices = sum(expert in row[t].topk(chosen).indices.tolist() for t in range(tokens))
            loss = loss + balance * n * choices / (tokens * chosen) * probabilities[:, expert].mean()
        losses.append(loss)
    return losses


def batch() -> tuple[Tensor, Tensor]:
    """Rows of which very different numbers of tokens are learned; of the last, none."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(CONFIG.vocab_size, (8, 12), generator=generator)
    learned = torch.rand(tokens.shape, generator=generator) < torch.linspace(1, 0, 8).unsqueeze(1)
    return tokens, next_token_targets(tokens, learned)


def gradients_by_hand(z: float) -> dict[str, Tensor]:
    """Of one explicit total loss over the whole batch, in float64."""
    model = Decoder(CONFIG).double()
    model.init_weights(seed=3)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.mlp.router.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens, targets = batch()
    logits = model(tokens)[..., : CONFIG.vocab_size]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    valid = (targets != IGNORE).sum(1)
    for router in seen:
        losses = router_losses_by_hand(router, 2, CONFIG.balance_coefficient, z)
        loss = loss + sum(v * each for v, each in zip(valid, losses, strict=True))
    (loss / valid.sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def gradients_of_a_step(z: float, micro_batches: int, rank: int, world: int) -> dict[str, Tensor]:
    """What a step by gradient descent with a rate of 1 subtracts from the weights."""
    model = build(CONFIG.model_copy(update={"router_z_coefficient": z}))
    if world > 1:
        shard(model, data_mesh(torch.device("cpu")), "fp32")
    model.to_empty(device="cpu").init_weights(seed=3)
    before = gather_weights(model)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), SCALE: 1.0}], lr=1.0)
    tokens, targets = (part.chunk(world)[rank].chunk(micro_batches) for part in batch())
    parts = list(zip(tokens, targets, strict=True))
    train_step(model, optimizer, parts, language_model_loss(model), learning_rate=1.0, clip_norm=0)
    return {name: before[name] - after for name, after in gather_weights(model).items()}


def on_a_rank(z: float, micro_batches: int) -> dict[str, Tensor]:
    return gradients_of_a_step(z, micro_batches, torch.distributed.get_rank(), world=2)


@pytest.mark.parametrize("z", [0.0, 0.1])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_gradients_are_those_of_the_whole_loss_however_it_is_cut(z, micro_batches):
    check(gradients_of_a_step(z, micro_batches, rank=0, world=1), gradients_by_hand(z))


def test_gradients_are_those_of_the_whole_loss_on_two_ranks():
    check(on_ranks(2, on_a_rank, 0.1, 2)[0], gradients_by_hand(0.1))


def check(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name].double(), gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_what_is_reported_is_the_loss_of_the_text_alone():
    model = Decoder(CONFIG)
    model.init_weights(seed=3)
    tokens, targets = batch()
    logits = model(tokens)[..., : CONFIG.vocab_size].flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(language_model_loss(model)(tokens, targets), expected)


def test_no_token_is_dropped_when_all_go_to_the_same_experts():
    experts = Experts(CONFIG).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # no one chooses the others
        experts.router.weight[2:] = experts.router.weight[:2] - 1e3 * torch.ones(32)
    x = torch.rand(2, 5, 32, dtype=torch.float64)
    y, _ = experts(x)
    share = (x @ experts.router.weight[:2].T).softmax(-1)
    for row, place in ((0, 0), (1, 4)):
        expected = 0
        for expert in range(2):
            gate, up = (experts.gate_up.weight[expert] @ x[row, place]).chunk(2)
            network = experts.down.weight[expert] @ (F.silu(gate) * up)
            expected = expected + share[row, place, expert] * network
        torch.testing.assert_close(y[row, place], expected, atol=1e-5, rtol=1e-5)  # the router's are fp32


def test_one_grouped_matmul_equals_a_loop():
    """The kernel that GPUs use, where a CPU has it too."""
    linear = ExpertLinear(4, 16, 32).to(torch.bfloat16)
    torch.nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    x, counts = torch.randn(20, 16, dtype=torch.bfloat16), torch.tensor([7, 0, 12, 1])
    grouped = F.grouped_mm(x, linear.weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    torch.testing.assert_close(grouped, linear(x, counts), atol=0.1, rtol=0.02)


def test_initial_scale_is_by_the_inputs_of_an_expert():
    model = Decoder(model_config("tiny-100k", 100, d_model=128, d_ff=256, **EXPERTS))
    model.init_weights(seed=1)
    std = {name: p.std().item() for name, p in model.named_parameters()}
    assert std["blocks.1.mlp.gate_up.weight"] == pytest.approx(128**-0.5, rel=0.03)
    assert std["blocks.1.mlp.down.weight"] == pytest.approx(256**-0.5 / 2, rel=0.03)
    assert std["blocks.1.mlp.router.weight"] == pytest.approx(128**-0.5, rel=0.1)


def test_the_engine_generates_with_experts():
    model = lively_model(**EXPERTS)
    greedy = SamplingParams(max_tokens=6, temperature=0.0)
    requests = [Request(f"r{n}", list(range(8 + n, 8 + 3 * n)), greedy) for n in range(1, 6)]
    for request, answer in zip(requests, generate(Engine(model, max_batch=4), requests), strict=True):
        assert answer.response_ids == generate_alone(model, request.prompt_ids, greedy)[0]


def test_experts_go_with_a_decoder():
    with pytest.raises(ValueError, match="experts are for decoders"):
        model_config("gpt2", **EXPERTS)
