"""The whole chain on one machine, on text that every machine has, and a report of what came out."""
