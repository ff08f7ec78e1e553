"""How a model knows where a token stands: interchangeable parts, one a file."""
