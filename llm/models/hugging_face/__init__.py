"""To and from Hugging Face directories: one file a family, and `directory.py` that picks among them."""
