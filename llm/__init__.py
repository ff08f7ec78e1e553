"""What a language model is and how it learns. Never imports ray, pipelines or cluster."""
