"""The pages of reviews: what waits for a person, and one decision."""
