"""Sample responses to the same prompts and rank them."""
