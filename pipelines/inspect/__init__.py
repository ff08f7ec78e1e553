"""Commands that look and change nothing: ls, show, verify, doctor. Instant, without Ray or torch."""
