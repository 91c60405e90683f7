"""Differential privacy while training: gradients by example, clipped by unit, and guards around them."""
