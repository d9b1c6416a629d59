"""Print where two GGUF files differ, as a JSON list of lines; run by the environment's python: gguf_diff.py GGUF_PY OLD NEW."""

import json
import sys
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, sys.argv[1])

import numpy
from gguf import GGUFReader


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def metadata(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def differences(old: GGUFReader, new: GGUFReader) -> Iterator[str]:
    before, after = metadata(old), metadata(new)
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            yield f"metadata {name}: only in the {'first' if name in before else 'second'} file"
        elif before[name] != after[name]:
            yield f"metadata {name}: {shortened(before[name])}, now {shortened(after[name])}"
    had, has = ({tensor.name: tensor for tensor in reader.tensors} for reader in (old, new))
    for name in sorted(had.keys() | has.keys()):
        if name not in had or name not in has:
            yield f"tensor {name}: only in the {'first' if name in had else 'second'} file"
            continue
        one, two = had[name], has[name]
        if (one.tensor_type, list(one.shape)) != (two.tensor_type, list(two.shape)):
            yield f"tensor {name}: {one.tensor_type.name} {list(one.shape)}, now {two.tensor_type.name} {list(two.shape)}"
        elif not numpy.array_equal(one.data.view(numpy.uint8), two.data.view(numpy.uint8)):
            yield f"tensor {name}: other values"


print(json.dumps(list(differences(GGUFReader(sys.argv[2]), GGUFReader(sys.argv[3])))))
