"""Training: one optimiser loop, and a gradient rule per method in a file of its own.

Everything here takes torch objects and frozen hyper-parameters and could run in a notebook. It knows no
database, no queue, no settings and no tokenizer.
"""
