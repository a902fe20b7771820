"""The HTTP side: the OpenAI-compatible API, the dashboard and the command line. Loads no tensors."""
