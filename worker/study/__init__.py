"""Studies: simulated providers align bases, simulated customers tune them, and everything is measured."""
