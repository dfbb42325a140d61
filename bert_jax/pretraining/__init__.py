"""What a pretraining run is made of."""
