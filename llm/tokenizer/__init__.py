"""SentencePiece tokenizers: training, exact encoding and decoding, the chat template."""
