"""Notes on an output whose tensors are of other types than its name says."""

from __future__ import annotations

import re
from collections import Counter

from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.job.fields import is_folder
from llamacpp_orchestrator.verify.gguf import Contents

# The number of a tensor's type in a GGUF → its name (ggml/include/ggml.h, ggml_type).
NAMES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k",
    14: "q6_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs",
    28: "f64", 29: "iq1_m", 30: "bf16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4",
}  # fmt: skip
# Types by name and number of bits: what a mix such as IQ2_M is made of has another end, never another beginning.
FAMILY = re.compile(r"b?f(?:16|32)|(?:i?q|tq|mxfp|nvfp)\d")
DATASET = "quantize.imatrix.dataset"


def notes(kind: str, type_name: str, contents: Contents) -> tuple[str, ...]:
    """Notes on an output of a type (`kind` as in Output) that none of its matrices has, and on a path that came with a matrix."""
    lines = []
    family = FAMILY.match(type_name.lower())
    types = Counter(NAMES.get(tensor.type, str(tensor.type)) for _, tensor in contents.tensors.values() if len(tensor.shape) > 1)
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
