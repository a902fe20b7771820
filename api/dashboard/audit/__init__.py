"""The page of the audit log: search, the chain, the export."""
