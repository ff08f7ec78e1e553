"""Pre-training: token shards in, a base model out."""
