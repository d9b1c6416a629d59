"""The model card of published files: what it tells, in which words, and its place in a README."""
