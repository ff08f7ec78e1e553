"""`manta run`: several stages out of one file, ordered by the artifacts that they make and read."""
