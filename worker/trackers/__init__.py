"""Trackers outside the service, such as Weights & Biases and MLflow, that customers send curves to."""
