"""Export: a model of this root becomes a Hugging Face directory."""
