"""Export and import round trips, with transformers as the judge."""

import json

import pytest
import torch

from llm.models.decoder import Decoder
from llm.models.hugging_face import export_llama, import_llama
from llm.models.presets import model_config

torch.set_num_threads(1)
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_export_and_we_load_it_back(tmp_path, tied):
    model = Decoder(model_config("tiny-100k", 500, tie_embeddings=tied))
    model.init_weights(seed=5)
    export_llama(
        model.state_dict(), model.config, tmp_path, special_ids={"bos_token_id": 2, "eos_token_id": 3}
    )
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.eos_token_id == 3

    tokens = torch.randint(0, 500, (2, 30))
    torch.testing.assert_close(model(tokens)[..., :500], theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    back, config = import_llama(tmp_path)
    assert config == model.config
    assert torch.equal(back(tokens)[..., :500], model(tokens)[..., :500])


def test_import_reads_what_transformers_saves(tmp_path):
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=333, intermediate_size=128, max_position_embeddings=64, **shape)
    ).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, _ = import_llama(tmp_path)
    tokens = torch.randint(0, 333, (2, 30))
    torch.testing.assert_close(ours(tokens)[..., :333], theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_import_names_what_it_cannot_take(tmp_path):
    model = Decoder(model_config("tiny-100k", 500))
    model.init_weights(seed=5)
    export_llama(model.state_dict(), model.config, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    with pytest.raises(ValueError, match="attention_bias is True"):
        import_llama(tmp_path)
