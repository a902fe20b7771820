"""Moderation by the judges of safety sets."""
