"""Five practice sites on one machine, by the same steps and the same processes as real ones."""
