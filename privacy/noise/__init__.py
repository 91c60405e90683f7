"""Noise that protects people: where it comes from, and how it is added."""
