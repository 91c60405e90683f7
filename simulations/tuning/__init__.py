"""`wardround tune`: an Optuna study over values of the configuration."""
