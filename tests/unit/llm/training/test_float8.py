"""float8 is refused where it cannot be; where torchao is installed, its rounding is emulated."""

import pytest
import torch

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.deterministic import use_deterministic_algorithms
from llm.training.float8 import convert, use_float8
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.precision import PrecisionError

CONFIG = model_config("tiny-100k", vocab_size=64, d_model=32, d_ff=48)


def test_a_cpu_is_refused():
    with pytest.raises(PrecisionError, match=r"H100 or later.*leave --float8 out"):
        use_float8(Decoder(CONFIG), torch.device("cpu"))


def test_loss_is_near_and_only_blocks_are_rounded():
    pytest.importorskip("torchao")
    model = Decoder(CONFIG)
    model.init_weights(seed=1)
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    loss_sum, names = language_model_loss(model), list(model.state_dict())
    exact = loss_sum(tokens, next_token_targets(tokens))
    convert(model, emulate=True)
    rounded = loss_sum(tokens, next_token_targets(tokens))
    rounded.backward()
    assert list(model.state_dict()) == names
    assert 0 < abs(rounded.item() / exact.item() - 1) < 0.01
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    kinds = {type(module).__name__ for module in model.blocks.modules()}
    assert "Linear" not in kinds


def test_of_a_mixture_attention_alone_is_rounded():
    """Whose router would fit."""
    pytest.importorskip("torchao")
    model = Decoder(CONFIG.model_copy(update={"n_experts": 16, "experts_per_token": 2}))
    convert(model, emulate=True)
    kinds = {name: type(module).__name__ for name, module in model.blocks[0].named_modules()}
    rounded = {name for name, kind in kinds.items() if "Float8" in kind}
    assert rounded == {"attention.qkv", "attention.out"}


def test_a_model_without_a_fitting_matrix_is_refused():
    pytest.importorskip("torchao")
    with pytest.raises(PrecisionError, match="multiples of 16"):
        convert(Decoder(CONFIG.model_copy(update={"d_model": 36})))


def test_deterministic_algorithms_are_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
