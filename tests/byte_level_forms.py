"""Small byte-level tokenizers as GPT-2, Llama 3 and Qwen3 have them, in folders that transformers loads."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as cuts

FORMS = ("gpt2", "llama3", "qwen3")
TEXTS = [
    "The quick brown fox jumps over the lazy dog, isn't it? I'LL say 12345 times!",
    "def f(x):\n    return  x\t+ 1\r\n\n\n  # naïve café, 日本語のテキスト 🎉🎊, Привет мир",
    "the other fox thinks that they think: 2024-01-31, $3.99; e\u0301te\u0301 \u00a0 \u2003 ",
]
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA3, QWEN3 = _HEAD + r"\p{N}{1,3}" + _TAIL, _HEAD + r"\p{N}" + _TAIL


def make_tokenizer(form: str, merges: int = 120, texts: list[str] = TEXTS) -> Tokenizer:
    """Trained on the texts, with special pieces behind its vocabulary as the form has them."""
    made = Tokenizer(models.BPE(ignore_merges=form == "llama3"))
    if form == "gpt2":
        made.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
    else:
        pattern = Regex(LLAMA3 if form == "llama3" else QWEN3)
        bytes_alone = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = cuts.Sequence([cuts.Split(pattern, "isolated"), bytes_alone])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    if form == "qwen3":
        made.normalizer = normalizers.NFC()
    alphabet = cuts.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts * 20, trainer)
    if form == "gpt2":
        made.add_special_tokens(["<|endoftext|>"])
    elif form == "llama3":
        names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "eot_id"]
        made.add_special_tokens([f"<|{name}|>" for name in names])
        begin = made.token_to_id("<|begin_of_text|>")
        made.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
        )
    else:
        made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        made.add_tokens([AddedToken(each, normalized=False) for each in ("<think>", "</think>")])
    return made


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer"},
    "llama3": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
    },
    "qwen3": {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    },
}


def save_tokenizer(form: str, directory: Path, **more: Any) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json, as their makers do."""
    made = make_tokenizer(form, **more)
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIGS[form]))
    return made


def save_model(form: str, directory: Path, **more: Any) -> Tokenizer:
    """A folder with such a tokenizer and a small model with random weights; its table has more rows than the
    tokenizer has ids.
    """
    import torch
    import transformers

    made = save_tokenizer(form, directory, **more)
    torch.manual_seed(0)
    vocab = made.get_vocab_size() + 11
    if form == "gpt2":
        end = made.token_to_id("<|endoftext|>")
        config: Any = transformers.GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, bos_token_id=end, eos_token_id=end
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(directory)
        return made
    shape = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if form == "llama3":
        ids = {name: made.token_to_id(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "eot_id")}
        ends = [ids["end_of_text"], ids["eot_id"]]
        config = transformers.LlamaConfig(**shape, bos_token_id=ids["begin_of_text"], eos_token_id=ends)
        transformers.LlamaForCausalLM(config).save_pretrained(directory)
    else:
        end, turn = (made.token_to_id(f"<|{name}|>") for name in ("endoftext", "im_end"))
        config = transformers.Qwen3Config(**shape, head_dim=8, bos_token_id=end, eos_token_id=turn)
        transformers.Qwen3ForCausalLM(config).save_pretrained(directory)
    return made
