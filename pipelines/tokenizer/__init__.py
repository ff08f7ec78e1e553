"""A SentencePiece tokenizer out of a text corpus."""
