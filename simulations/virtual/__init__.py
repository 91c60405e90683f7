"""Realism of a simulation: sites that are slow, far or away, and the clock of their rounds."""
