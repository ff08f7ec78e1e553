"""Immutable, fingerprinted artifacts under one root. Never imports ray or torch."""
