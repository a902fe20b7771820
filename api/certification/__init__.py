"""Certification jobs and certificates, the provider's side."""
