"""What grit-runtime costs: `make bench`."""
