"""Supervised fine-tuning: a base model and conversations in, a chat model out."""
