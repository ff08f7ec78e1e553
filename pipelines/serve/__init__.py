"""`manta serve`: a model behind an OpenAI-compatible API on Ray Serve."""
