"""What is done to a private step, and to what a run released, to see whether the claim holds."""
