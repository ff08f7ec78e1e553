"""Token shards on disk, the closed-form training order, the loader, and batches of conversations."""
