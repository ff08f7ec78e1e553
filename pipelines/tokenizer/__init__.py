"""A SentencePiece tokenizer out of a corpus."""
