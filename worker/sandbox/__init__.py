"""The tiny world: a base model, its safety set and its customers, made from nothing in minutes."""
