"""`manta chat`: talk to a served model in the terminal."""
