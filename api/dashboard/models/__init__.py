"""The pages of models: lineage, and an aligned base with its certificate."""
