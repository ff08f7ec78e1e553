"""Ray actors that several stages use."""
