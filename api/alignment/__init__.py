"""Alignment jobs, the provider's side."""
