"""Webhooks: endpoints, signatures, and the deliverer that tells them what happened."""
