"""Generation: a text is read and another one written, as in summaries and translations."""
