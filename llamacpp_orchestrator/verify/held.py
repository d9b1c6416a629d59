"""Notes on an output whose tensors are of other types than its name says."""

from __future__ import annotations

import re
from collections import Counter

from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job.fields import is_folder
from llamacpp_orchestrator.job.tensor_types import TENSOR_TYPES
from llamacpp_orchestrator.verify.gguf import Contents

# Types by name and number of bits: what a mix such as IQ2_M is made of has another end, never another beginning.
FAMILY = re.compile(r"b?f(?:16|32)|(?:i?q|tq|mxfp|nvfp)\d")
DATASET = "quantize.imatrix.dataset"


def notes(kind: str, type_name: str, contents: Contents) -> tuple[str, ...]:
    """Notes on an output of a type (`kind` as in Output) that none of its matrices has, and on a path that came with a matrix."""
    lines = []
    family = FAMILY.match(type_name.lower())
    types = Counter(_name(tensor.type) for _, tensor in contents.tensors.values() if len(tensor.shape) > 1)
    if family and types and not any(name.startswith(family[0]) for name in types):
        have = ", ".join(f"{count} {name}" for name, count in types.most_common(3))
        why = ""
        if kind == "adapter":
            why = "; this tag's script does not heed --outtype for adapters"
        elif family[0] in ("mxfp4", "nvfp4"):
            why = "; that type is for stacked experts, of which it has none"
        lines.append(f"none of its matrices is as {type_name} says, they are {have}{why}")
    dataset = contents.metadata.get(DATASET)
    if isinstance(dataset, str) and is_folder(dataset):
        lines.append(f"its matrix names the text that it was made of by a path, and so does this file now: {quoted(dataset)}")
    return tuple(lines)


def _name(number: int) -> str:
    row = TENSOR_TYPES.get(number)
    return row.name if row else str(number)
