"""The pages of policies: versions, one in words, a new one, and what it would change."""
