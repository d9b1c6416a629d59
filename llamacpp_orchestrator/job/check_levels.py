"""The levels of checks by name, each with all before it, and what they run."""

from __future__ import annotations

STRUCTURE, CONTENT, LOAD, LOGITS = LEVELS = ("structure", "content", "load", "logits")
AUTO = "auto"  # content, and load where the programs are there anyway
RUNNING = (LOAD, LOGITS)  # those that run the tag's programs
COMPARING = (LOGITS,)  # those that run the source, too, in an environment of its own
# How the note of an output ends for which a level was asked, and could not be had: nobody is to take that for a failure.
EXCUSES = {LOAD: "so it was not loaded", LOGITS: "so its next tokens were not compared"}
