"""What any program could use: downloads, archives, the store, YAML, units."""
