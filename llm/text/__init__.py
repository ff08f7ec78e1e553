"""Pure functions on documents: reading, normalising, identity, and what to learn from source code."""
