"""The outputs of a job whose output folder is an address: a mirror of them here, and what goes there and comes back."""
