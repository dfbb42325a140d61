"""Extensions from outside of bert_jax, one a file, as docs/extending.md shows them."""
