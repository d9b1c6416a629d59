"""The page of what a job has made, and the record of a run that it is drawn from."""
