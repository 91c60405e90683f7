"""The consortium's server: rounds, journal, transport. Needs no torch."""
