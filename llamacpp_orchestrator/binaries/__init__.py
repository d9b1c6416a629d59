"""The programs of a tag: its release's archives, or a build out of the source."""
