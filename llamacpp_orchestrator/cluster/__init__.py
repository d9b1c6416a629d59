"""A job on the workers of a Dask cluster: each chain of outputs is one task, which runs this program as a child there."""
