"""Logging for processes that load models: as everywhere, and without the bars that the libraries draw."""

from __future__ import annotations

from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from models.log import configure_logging


def configure_worker_logging(*, as_json: bool, level: str) -> None:
    """Set logging up; a bar that is drawn over itself is no line for a machine."""
    configure_logging(as_json=as_json, level=level)
    if as_json:
        disable_progress_bar()
        disable_progress_bars()
