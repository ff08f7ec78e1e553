"""Teach a chat model to answer as its reviewers prefer: PPO against a reward model."""
