"""Commands about jobs and clusters: up, down, submit, jobs, logs, stop."""
