"""Extraction: the sentences of a document that are its summary."""
