"""What zeroth-order optimization can perturb in a language model."""
