"""Import: a Hugging Face directory becomes a model of this root."""
