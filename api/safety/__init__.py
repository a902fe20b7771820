"""Evidence on the wire: data risk reports, signed safety reports, and the keys that they are signed with."""
