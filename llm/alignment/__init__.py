"""Learning from preferences: one file per algorithm, tensors in and tensors out."""
