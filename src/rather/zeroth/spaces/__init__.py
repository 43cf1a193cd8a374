"""What zeroth-order optimisation can perturb in a language model."""
