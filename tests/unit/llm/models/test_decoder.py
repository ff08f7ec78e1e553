"""The decoder against transformers' LlamaForCausalLM, and the promises of its initialisation."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.models import initial
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar, last_token_scores
from llm.models.hugging_face.llama import LLAMA
from llm.models.initial import initial_value
from llm.models.load import build, load_model, save_model
from llm.models.presets import PRESETS, model_config

torch.set_num_threads(1)


def make(**overrides) -> Decoder:
    model = Decoder(model_config("tiny-100k", 500, **overrides))
    model.init_weights(seed=1)
    return model.eval()


def randomise_norms(model: Decoder) -> Decoder:
    """Norm weights of 1 would hide a norm that is applied in the wrong place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
            else:
                parameter.mul_(5)
    return model


def llama_twin(model: Decoder) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = model.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.d_ff,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    missing, unexpected = theirs.load_state_dict(
        dict(LLAMA.to_theirs(model.state_dict().__getitem__, config)), strict=False
    )
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.eval()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients_equal_transformers(heads, tied):
    model = randomise_norms(
        make(n_heads=heads[0], n_kv_heads=heads[1], tie_embeddings=tied, rope_theta=5000.0)
    )
    theirs = llama_twin(model)
    tokens = torch.randint(0, 500, (3, 40), generator=torch.Generator().manual_seed(2))

    ours_out, theirs_out = model(tokens)[..., :500], theirs(tokens).logits
    assert theirs_out.std() > 0.5
    torch.testing.assert_close(ours_out, theirs_out, atol=2e-5, rtol=1e-5)

    weights = torch.randn(ours_out.shape, generator=torch.Generator().manual_seed(3))
    (ours_out * weights).mean().backward()
    (theirs_out * weights).mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours_grad = dict(LLAMA.to_theirs(gradients.__getitem__, model.config))
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours_grad[name], parameter.grad, atol=2e-6, rtol=1e-4)


def test_meta_initialisation_equals_direct_bitwise_and_differs_by_seed():
    config = model_config("tiny-100k", 300)
    direct, meta, other = Decoder(config), build(config).to_empty(device="cpu"), Decoder(config)
    direct.init_weights(seed=7)
    meta.init_weights(seed=7)
    other.init_weights(seed=8)
    for (name, a), b, c in zip(direct.named_parameters(), meta.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert "norm" in name or not torch.equal(a, c), name


@given(height=st.integers(1, 40), width=st.integers(1, 9), block=st.integers(1, 60), data=st.data())
def test_rows_of_a_matrix_are_drawn_as_they_are_in_the_whole(height, width, block, data):
    first = data.draw(st.integers(0, height))
    rows = range(first, data.draw(st.integers(first, height)))
    config = model_config("t5-tiny", 300)
    for name in ("blocks.0.attention.qkv.weight", "blocks.0.mlp.down.weight", "norm.weight"):
        shape = torch.Size((height, width) if "blocks" in name else (height,))
        with mock.patch.object(initial, "_BLOCK", block):
            whole = initial_value(name, shape, config, seed=3)
            assert torch.equal(initial_value(name, shape, config, 3, rows), whole[rows.start : rows.stop])


@pytest.mark.parametrize("tied", [True, False])
def test_initial_scale_is_what_the_table_says(tied):
    model = make(d_model=128, d_ff=256, tie_embeddings=tied)
    std = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    assert std["embed.weight"] == pytest.approx(0.02 if tied else 1.0, rel=0.03)
    assert tied or std["head.weight"] == pytest.approx(0.02, rel=0.03)
    assert std["blocks.1.mlp.gate_up.weight"] == pytest.approx(128**-0.5, rel=0.03)
    assert std["blocks.1.mlp.down.weight"] == pytest.approx(256**-0.5 / 2, rel=0.03)  # two layers: sqrt(4)
    assert std["blocks.0.attention.out.weight"] == pytest.approx(128**-0.5 / 2, rel=0.03)
    both = build(model_config("t5-tiny", 500, d_model=128, n_heads=4, n_kv_heads=4, d_ff=256))
    assert (name := "decoder.blocks.1.mlp.down.weight") in dict(both.named_parameters())
    assert initial_value(name, torch.Size((128, 256)), both.config, 0).std() == pytest.approx(
        1 / 16, rel=0.03
    )


def test_right_padding_and_positions_do_not_change_earlier_logits():
    model = make()
    tokens = torch.randint(0, 500, (2, 20))
    padded = torch.cat((tokens, torch.zeros(2, 5, dtype=torch.long)), dim=1)
    torch.testing.assert_close(model(padded)[:, :20], model(tokens), atol=1e-5, rtol=1e-5)
    shifted = model(tokens, positions=torch.arange(100, 120).unsqueeze(0))  # rotary attention is relative
    torch.testing.assert_close(shifted, model(tokens), atol=1e-4, rtol=1e-4)


def test_readout_sees_hidden_states_and_the_head():
    model = make()
    tokens = torch.randint(0, 500, (2, 9))
    torch.testing.assert_close(model(tokens, readout=lambda hidden, weight, _: hidden), model.hidden(tokens))
    last = model(tokens, readout=lambda hidden, weight, _: hidden[:, -1] @ weight.T)
    torch.testing.assert_close(last, model(tokens)[:, -1], atol=1e-5, rtol=1e-5)


def test_scalar_model_shares_the_trunk(tmp_path):
    language_model = make(tie_embeddings=False)
    reward = DecoderWithScalar(language_model.config)
    reward.init_weights(seed=3)
    assert reward.scalar.bias.item() == 0
    reward.load_trunk(language_model.state_dict())
    tokens = torch.randint(0, 500, (2, 9))
    expected = language_model.hidden(tokens) @ reward.scalar.weight[0] + reward.scalar.bias
    torch.testing.assert_close(reward(tokens), expected)

    scores = last_token_scores(reward(tokens), torch.tensor([9, 4]))
    torch.testing.assert_close(scores, torch.stack((expected[0, 8], expected[1, 3])))

    save_model(tmp_path, reward.state_dict(), reward.config, head="scalar")
    loaded, config = load_model(tmp_path)
    assert config == reward.config
    assert torch.equal(loaded(tokens), reward(tokens))


def test_impossible_shapes_are_refused_with_the_mend():
    with pytest.raises(ValueError, match="n_kv_heads=3 must divide n_heads=4"):
        model_config("tiny-100k", 500, n_kv_heads=3)
    with pytest.raises(ValueError, match="a whole head size"):
        model_config("tiny-100k", 500, n_heads=7)
    with pytest.raises(ValueError, match="`manta models` lists all"):
        model_config("gpt-9", 500)
    with pytest.raises(ValueError, match="extra"):
        ModelConfig(**PRESETS["tiny-100k"].shape, vocab_size=5, colour="red")
