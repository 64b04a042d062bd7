"""How fast a load is, as ratios within one run: `make bench`."""
