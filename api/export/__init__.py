"""Adapters to take along: a released model's PEFT folder as a tar stream."""
