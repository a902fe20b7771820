"""Lends the certified model to one customer after the other, and takes back what each made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from transformers import PreTrainedModel

from models.certification import SimulatedCustomer
from models.hyperparameters import LoraConfig
from worker import lora
from worker.base_models import LoadedBase
from worker.certify.assignment import Assignment
from worker.work import Workshop, load_adapter


@contextmanager
def root_for(start: str, task: Assignment, shop: Workshop) -> Iterator[LoadedBase]:
    """Lend the weights that customers of one kind put their adapters on.

    For fresh adapters these are the certified model's own: an adapter of it is merged, once for all of them.
    """
    base = shop.base(task.root)
    if start == "continued" or not task.version.is_adapter:
        yield base
        return
    try:
        lora.merge(load_adapter(base, task.version, shop, trainable=False))
        yield base
    finally:
        # The resident weights are no longer the base's.
        shop.bases.drop()


@contextmanager
def to_tune(
    base: LoadedBase, customer: SimulatedCustomer, seed: int, task: Assignment, shop: Workshop
) -> Iterator[PreTrainedModel]:
    """Lend the model with the adapter that a customer trains; its changes are gone afterwards."""
    if customer.start == "continued":
        model = load_adapter(base, task.version, shop, trainable=True)
    else:
        model = lora.attach(base.model, LoraConfig(r=customer.rank), seed)
    try:
        # A PEFT model answers to all that is asked of a transformers model here.
        yield cast(PreTrainedModel, model)
    finally:
        lora.detach(model)
