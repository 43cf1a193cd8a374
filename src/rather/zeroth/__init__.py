"""Zeroth-order optimization: perturb the policy, ask which behaves better, move."""
