"""Hydra configuration; no logic."""
