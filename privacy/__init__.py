"""What may leave a site: today the integer ring that contributions are summed in."""
