"""The original Transformer computes what `torch.nn.Transformer` does with its weights."""

import torch
from torch import nn

from llm.models.encoder_decoder import EncoderDecoder
from llm.models.presets import model_config

CONFIG = model_config(
    "transformer-base", 128, d_model=32, n_layers=2, n_encoder_layers=3, n_heads=4, n_kv_heads=4, d_ff=48
)


def linear(theirs, ours):
    theirs.weight.copy_(ours.weight)
    theirs.bias.copy_(ours.bias)


def attention(theirs, ours, into):
    theirs.in_proj_weight.copy_(torch.cat([each.weight for each in into]))
    theirs.in_proj_bias.copy_(torch.cat([each.bias for each in into]))
    linear(theirs.out_proj, ours.out)


def sinusoids(length):
    """(length, d_model): sin and cos of pos / 10000^(2i / d_model), in turn (section 3.5)."""
    places, pairs = (torch.arange(end, dtype=torch.float64) for end in (length, 16))
    angles = torch.outer(places, 10000 ** (-2 * pairs / 32))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


@torch.no_grad()
def test_logits_are_those_of_torch():
    ours = EncoderDecoder(CONFIG)
    ours.init_weights(seed=3)
    random = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():  # norms and biases too
        parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    ours.double()
    theirs = nn.Transformer(32, 4, 3, 2, 48, dropout=0.0, batch_first=True, layer_norm_eps=CONFIG.norm_eps)
    theirs.double().eval()
    theirs.encoder.norm = theirs.decoder.norm = None  # which the paper does not have
    for layer, block in zip(theirs.encoder.layers, ours.encoder.blocks, strict=True):
        attention(layer.self_attn, block.attention, [block.attention.qkv])
        linear(layer.norm1, block.attention_norm)
        linear(layer.norm2, block.mlp_norm)
    for layer, block in zip(theirs.decoder.layers, ours.decoder.blocks, strict=True):
        attention(layer.self_attn, block.attention, [block.attention.qkv])
        attention(layer.multihead_attn, block.cross, [block.cross.q, block.cross.kv])
        linear(layer.norm1, block.attention_norm)
        linear(layer.norm2, block.cross_norm)
        linear(layer.norm3, block.mlp_norm)
    for layer, block in zip([*theirs.encoder.layers, *theirs.decoder.layers], ours.blocks, strict=True):
        linear(layer.linear1, block.mlp.up)
        linear(layer.linear2, block.mlp.down)

    inputs, tokens = (torch.randint(100, (2, length), generator=random) for length in (9, 7))
    table = ours.embed.weight  # for inputs, outputs and logits (section 3.4)
    read, written = (table[each] * 32**0.5 + sinusoids(each.shape[1]) for each in (inputs, tokens))
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    expected = theirs(read, written, tgt_mask=causal) @ table.T
    torch.testing.assert_close(ours(inputs, tokens), expected, rtol=1e-6, atol=1e-6)
