"""Export and import round trips, with transformers as the judge."""

import json

import pytest
import torch

from llm.models.decoder import Decoder
from llm.models.hugging_face import export_llama, import_llama
from llm.models.presets import model_config
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.special import BOS_ID, END_ID, PAD_ID
from llm.tokenizer.train import train_tokenizer

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


def test_transformers_tokenises_like_us_chat_included(tmp_path):
    texts = ["def f(x):\n    return x\n", "class A:\n\tpass\n"] * 30
    file = tmp_path / "tokenizer.model"
    file.write_bytes(train_tokenizer(texts, vocab_size=330))
    ours = load_tokenizer(file)
    model = Decoder(model_config("tiny-100k", 330))
    model.init_weights(seed=5)
    ids = {"bos_token_id": BOS_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
    export_llama(model.state_dict(), model.config, tmp_path / "out", tokenizer_model=file, special_ids=ids)

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (BOS_ID, END_ID, PAD_ID)
    for text in (texts[0], "  two  spaces\n\n\ttab naïve 日本 🎉 ", " lead"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    messages = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": " def f(x):\n"},
        {"role": "assistant", "content": "    return x"},
        {"role": "user", "content": "class"},
    ]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert theirs.encode(text) == encode_prompt(ours, messages)
