"""Generation: continuous batching over a fixed set of KV slots, for rollouts and for serving alike."""
