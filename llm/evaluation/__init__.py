"""How good a model is: numbers with intervals."""
