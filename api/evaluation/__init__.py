"""Evaluation jobs, the provider's side: a registered model is measured anew."""
