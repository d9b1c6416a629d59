"""Random blocks of every type that the tag's own gguf package can read, and whether it finds a number in them that is none."""

import json
import sys

import numpy

sys.path.insert(0, sys.argv[1])
from gguf import GGML_QUANT_SIZES  # noqa: E402
from gguf import GGMLQuantizationType  # noqa: E402
from gguf import quants  # noqa: E402

COUNT = 300
random = numpy.random.default_rng(7)
found = {}
numpy.seterr(all="ignore")
for kind, (elements, size) in GGML_QUANT_SIZES.items():
    blocks = random.integers(0, 256, (COUNT, size), dtype=numpy.uint8)
    if kind == GGMLQuantizationType.MXFP4:  # the largest exponents are numbers, which weights of 6 then take beyond a float
        blocks[:, 0] = random.choice([0, 1, 127, 252, 255], COUNT)
    try:
        numbers = quants.dequantize(blocks, kind).reshape(COUNT, elements)
    except NotImplementedError:
        continue
    bad = ~numpy.isfinite(numbers).all(axis=1)
    found[int(kind)] = [[block.tobytes().hex(), bool(none)] for block, none in zip(blocks, bad, strict=True)]
print(json.dumps(found))
