"""Safety policies: versions of the rules, and what candidates would have decided."""
