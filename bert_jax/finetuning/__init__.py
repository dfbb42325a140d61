"""What a fine-tuning run is made of."""
