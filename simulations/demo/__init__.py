"""The demo: four real hospitals and their heart-disease records."""
