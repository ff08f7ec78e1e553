"""How much memory the training of a tokenizer takes, before it starts.

    bytes = 350 MB + 1 kB · vocab_size + rate(model) · bytes of text

An upper bound of what was measured, with SentencePiece 0.2.3 at 32,000 pieces (peak resident memory of the
process, MB, of which 69 were there before it began; one that Ray started has 110 more):

                                         5 MB of text                    20 MB
                                 bpe  unigram  word  char      bpe  unigram  word  char
    source code, lossless        309      343   156   141      695      746   224   168
    documentation, nmt_nfkc      187      206   138   126      357      484   214   173
    no spaces, lossless          428      188               1163      423

"No spaces" is random words of Chinese characters. BPE on 60 MB of source code took 1603. On 20 MB, 8,000
pieces took 16 MB less than 32,000, and 128,000 took 58 more.

BPE keeps every place of every pair in each different word. So text without spaces sets its rate; code takes
half of that. Text without spaces that has one byte a character, such as base64, takes more than the bound.
Unigram keeps a suffix array of all text, words and characters little more than the text.
"""

from llm.tokenizer.train import ModelType

_FIXED = 350_000_000
_PER_PIECE = 1_000
_PER_BYTE: dict[ModelType, int] = {"bpe": 55, "unigram": 32, "word": 8, "char": 5}


def training_memory(model_type: ModelType, text_bytes: int, vocab_size: int) -> int:
    """Bytes that a process holds at most while it trains on so much text, UTF-8."""
    return _FIXED + _PER_PIECE * vocab_size + _PER_BYTE[model_type] * text_bytes


def most_text(model_type: ModelType, memory_bytes: int, vocab_size: int) -> int:
    """Bytes of text that can be trained on with so much memory; 0 if there is none."""
    return max(0, (memory_bytes - training_memory(model_type, 0, vocab_size)) // _PER_BYTE[model_type])
