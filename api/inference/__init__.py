"""Chat with released models, passed on to the inference server."""
