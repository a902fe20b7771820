"""Fine-tuning jobs."""
