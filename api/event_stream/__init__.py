"""Live events: a job's log as server-sent events, while it is written."""
