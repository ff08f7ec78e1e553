"""Measure a model, alone or against another."""
