"""Text or conversations from files into a clean corpus: Parquet, without duplicates, split for good."""
