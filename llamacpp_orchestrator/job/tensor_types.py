"""The one table of tensor types, as ggml stores them, and of the types that llama-quantize makes of them."""

from __future__ import annotations

import msgspec

# Of what kind a floating point number in a block is, a weight or the scale of some.
HALF, SINGLE, DOUBLE, POWER, SPREAD = "f16", "f32 or bf16", "f64", "e8m0", "four bits of four words"


class TensorType(msgspec.Struct, frozen=True):
    """A ggml_type: elements and bytes of its blocks, and the floating point numbers in one, by the offset of their last byte."""

    number: int
    name: str
    elements: int
    size: int
    floats: tuple[tuple[int, str], ...] = ()


# ggml/include/ggml.h (numbers, names), gguf-py/gguf/constants.py (GGML_QUANT_SIZES), ggml/src/ggml-common.h (where a scale lies;
# those of NVFP4 are all numbers). Types 9 and 15 stand in no file; whole numbers have no scale.
TENSOR_TYPES = {
    row.number: row
    for row in (
        TensorType(0, "f32", 1, 4, ((3, SINGLE),)),
        TensorType(1, "f16", 1, 2, ((1, HALF),)),
        TensorType(2, "q4_0", 32, 18, ((1, HALF),)),
        TensorType(3, "q4_1", 32, 20, ((1, HALF), (3, HALF))),
        TensorType(6, "q5_0", 32, 22, ((1, HALF),)),
        TensorType(7, "q5_1", 32, 24, ((1, HALF), (3, HALF))),
        TensorType(8, "q8_0", 32, 34, ((1, HALF),)),
        TensorType(9, "q8_1", 32, 36, ((1, HALF), (3, HALF))),
        TensorType(10, "q2_k", 256, 84, ((81, HALF), (83, HALF))),
        TensorType(11, "q3_k", 256, 110, ((109, HALF),)),
        TensorType(12, "q4_k", 256, 144, ((1, HALF), (3, HALF))),
        TensorType(13, "q5_k", 256, 176, ((1, HALF), (3, HALF))),
        TensorType(14, "q6_k", 256, 210, ((209, HALF),)),
        TensorType(15, "q8_k", 256, 292, ((3, SINGLE),)),
        TensorType(16, "iq2_xxs", 256, 66, ((1, HALF),)),
        TensorType(17, "iq2_xs", 256, 74, ((1, HALF),)),
        TensorType(18, "iq3_xxs", 256, 98, ((1, HALF),)),
        TensorType(19, "iq1_s", 256, 50, ((1, HALF),)),
        TensorType(20, "iq4_nl", 32, 18, ((1, HALF),)),
        TensorType(21, "iq3_s", 256, 110, ((1, HALF),)),
        TensorType(22, "iq2_s", 256, 82, ((1, HALF),)),
        TensorType(23, "iq4_xs", 256, 136, ((1, HALF),)),
        TensorType(24, "i8", 1, 1),
        TensorType(25, "i16", 1, 2),
        TensorType(26, "i32", 1, 4),
        TensorType(27, "i64", 1, 8),
        TensorType(28, "f64", 1, 8, ((7, DOUBLE),)),
        TensorType(29, "iq1_m", 256, 56, ((55, SPREAD),)),
        TensorType(30, "bf16", 1, 2, ((1, SINGLE),)),
        TensorType(34, "tq1_0", 256, 54, ((53, HALF),)),
        TensorType(35, "tq2_0", 256, 66, ((65, HALF),)),
        TensorType(39, "mxfp4", 32, 17, ((0, POWER),)),
        TensorType(40, "nvfp4", 64, 36),
        TensorType(41, "q1_0", 128, 18, ((1, HALF),)),
        TensorType(42, "q2_0", 64, 18, ((1, HALF),)),
    )
}


class FileType(msgspec.Struct, frozen=True):
    """A type of llama-quantize: about how many bits a weight takes, its number in the tool's list where it must have a matrix.

    `since` is the build from which on every tag has it; 0 for what only some have.
    """

    name: str
    bits: float
    matrix: int = 0
    since: int = 3878


# Bits by ggml's blocks; K-quants and IQ types are mixes, so theirs are upstream's averages, rounded up. Which must have a matrix:
# tensor_requires_imatrix in src/llama-quant.cpp at every tag; some tags refuse others, too, and say so themselves.
FILE_TYPES = {
    row.name: row
    for row in (
        FileType("F32", 32.0), FileType("F16", 16.0), FileType("BF16", 16.0), FileType("COPY", 16.0), FileType("Q8_0", 8.5),
        FileType("Q6_K", 6.6), FileType("Q5_0", 5.6), FileType("Q5_1", 6.1), FileType("Q5_K", 5.8), FileType("Q5_K_M", 5.8),
        FileType("Q5_K_S", 5.6), FileType("Q4_0", 4.7), FileType("Q4_1", 5.2), FileType("Q4_K", 5.0), FileType("Q4_K_M", 5.0),
        FileType("Q4_K_S", 4.7), FileType("IQ4_NL", 4.7), FileType("IQ4_XS", 4.5), FileType("Q3_K", 4.1), FileType("Q3_K_L", 4.4),
        FileType("Q3_K_M", 4.1), FileType("Q3_K_S", 3.7), FileType("IQ3_M", 3.8), FileType("IQ3_S", 3.8), FileType("IQ3_XS", 3.7),
        FileType("IQ3_XXS", 3.5), FileType("Q2_K", 3.5), FileType("Q2_K_S", 3.4, 21), FileType("IQ2_M", 3.0, 29),
        FileType("IQ2_S", 2.9, 28), FileType("IQ2_XS", 2.7, 20), FileType("IQ2_XXS", 2.5, 19), FileType("IQ1_M", 2.3, 31),
        FileType("IQ1_S", 2.1, 24), FileType("TQ2_0", 2.5), FileType("TQ1_0", 2.0),
        FileType("MXFP4_MOE", 4.7, since=0), FileType("Q2_0", 2.6, since=0), FileType("Q1_0", 1.5, since=0),
    )
}  # fmt: skip
UNKNOWN_BITS = 16.0
# What every tag's scripts have taken since b3878, by the kind of output.
OUTTYPES = {"model": ("bf16", "f16", "f32", "q8_0", "tq1_0", "tq2_0", "auto"), "adapter": ("bf16", "f16", "f32", "q8_0", "auto")}


def needs_matrix(name: str) -> bool:
    """Tell whether every tag refuses a type, by its name or its number, without an importance matrix."""
    return any(name.upper() in (row.name, str(row.matrix)) for row in FILE_TYPES.values() if row.matrix)


def bits(name: str) -> float:
    """About how many bits a weight takes in a file of a type."""
    row = FILE_TYPES.get(name.upper())
    return row.bits if row else UNKNOWN_BITS


def is_in_every_tag(name: str) -> bool:
    """Tell whether every tag's llama-quantize has a type: then a model's files need not wait for the tool to say so."""
    row = FILE_TYPES.get(name.upper())
    return row is not None and row.since > 0
