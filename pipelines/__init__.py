"""One package per stage; each stage is a function from artifacts to an artifact. `cli.py` is the command."""
