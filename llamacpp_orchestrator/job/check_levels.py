"""The levels of checks by name, each with all before it, and what they run."""

from __future__ import annotations

STRUCTURE, CONTENT, LOAD, LOGITS = LEVELS = ("structure", "content", "load", "logits")
AUTO = "auto"  # content, and load where the programs are there anyway
RUNNING = (LOAD, LOGITS)  # those that run the tag's programs
COMPARING = (LOGITS,)  # those that run the source, too, in an environment of its own
