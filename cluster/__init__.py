"""Where Manta runs: artifacts, connection to Ray, metrics."""
