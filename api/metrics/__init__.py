"""What Prometheus reads: this process's own counts, and the state of the whole service from the database."""
