"""Pretraining of BERT on TPUs with JAX."""

__version__ = "0.1.0"
