"""Bases, aligned bases and tuned models."""
