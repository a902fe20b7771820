"""The queue of held models, decisions on them, appeals, and projects' cumulative risk."""
