"""Merging: adapters that are summed into their base, so that what comes out is a model like any other."""
