"""Merging: adapters that are summed into their base, so that what comes out is a model like any other."""

RULE = "merge 1"  # raise it with every change of what comes out of a merge
