"""Learn from rankings what reviewers prefer."""
