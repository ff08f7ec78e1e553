"""What a language model is: shapes, layers, heads, and their files. Knows nobody else in the house."""
