"""Tokenizers of SentencePiece and on bytes: training, exact encoding and decoding, the chat template."""
