"""Protection of personal data: the master key and what is derived from it. Imports nothing by itself."""
