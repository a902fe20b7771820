"""Organizations, projects, their limits and what they used."""
