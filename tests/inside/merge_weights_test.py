"""What is made of a plan of a merge, against plain numpy: numbers are chosen so that every sum is exact in float32."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy
import pytest

from llamacpp_orchestrator import inside
from llamacpp_orchestrator.merge.records import File
from llamacpp_orchestrator.merge.records import Plan
from llamacpp_orchestrator.merge.records import Stored
from llamacpp_orchestrator.merge.records import Tensor
from llamacpp_orchestrator.merge.records import Update

FLOATS = ("F64", "F32", "F16", "BF16")
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1"}
Save = Callable[..., Stored]
Run = Callable[..., dict[str, Any]]


def stored_bytes(values: Any, dtype: str) -> bytes:
    """Numbers in a dtype; bfloat16 has eight digits in base two, ties go to the even one."""
    if dtype != "BF16":
        return numpy.asarray(values).astype(NUMPY[dtype]).tobytes()
    fraction, exponent = numpy.frexp(numpy.asarray(values, "f8"))
    rounded = numpy.ldexp(numpy.rint(fraction * 256) / 256, exponent).astype("<f4")
    return (rounded.view("<u4") >> 16).astype("<u2").tobytes()


def integers(*shape: int, most: int = 4) -> Any:
    """Small whole numbers of both signs, the same for the same shape."""
    return numpy.random.default_rng(shape).integers(-most, most + 1, shape).astype("f8")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with steps so small that every tensor here takes several."""
    monkeypatch.syspath_prepend(str(inside.path("merge_weights").parent))
    module = importlib.import_module("merge_weights")
    for name, value in (("PIECE", 24), ("BLOCK", 12), ("RUN", 64)):
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Keep numbers in a safetensors file of their own; where they lie in it."""

    def keep(values: Any, dtype: str = "F32", name: str = "x", **part: Any) -> Stored:
        content = stored_bytes(values, dtype)
        shape = tuple(numpy.shape(values))
        header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}).encode()
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + content)
        return Stored(file=str(path), offset=8 + len(header), dtype=dtype, shape=shape, **part)

    return keep


def plan_of(*tensors: Tensor, metadata: dict[str, str] | None = None) -> Plan:
    return Plan(files=(File(path="model.safetensors", tensors=tensors, metadata=metadata or {}),))


def asked(tmp_path: Path, plan: Plan) -> Path:
    """The question of the driver, in its file."""
    (tmp_path / "out").mkdir(exist_ok=True)
    question = {"files": msgspec.to_builtins(plan.files), "dest": str(tmp_path / "out")}
    (tmp_path / "asked.json").write_text(json.dumps(question), encoding="utf-8")
    return tmp_path / "asked.json"


@pytest.fixture
def run(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Carry out a plan in this process; what the script answers."""

    def main(plan: Plan, threads: int = 2) -> dict[str, Any]:
        monkeypatch.setattr(script.os, "cpu_count", lambda: threads)
        script.main(asked(tmp_path, plan), tmp_path / "answer.json")
        return dict(json.loads((tmp_path / "answer.json").read_text()))

    return main


@pytest.fixture
def refusal(run: Run) -> Callable[..., str]:
    """Why a tensor is not written."""

    def why(*tensors: Tensor) -> str:
        with pytest.raises(SystemExit) as caught:
            run(plan_of(*tensors))
        said = str(caught.value.code)
        assert said.startswith("merge_weights: ") and "\n" not in said
        return said

    return why


def read(tmp_path: Path, name: str = "model.safetensors") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A file's header and the bytes of its tensors; it has neither gaps nor a tail."""
    content = (tmp_path / "out" / name).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, tensors, at = json.loads(content[8 : 8 + length]), {}, 0
    assert length % 8 == 0
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            assert begin == at
            tensors[key], at = content[8 + length + begin : 8 + length + end], end
    assert len(content) == 8 + length + at
    return header, tensors


def tensor_of(stored: Stored, *updates: Update, **other: Any) -> Tensor:
    return Tensor(**{"name": "w", "dtype": stored.dtype, "shape": stored.shape, "base": stored} | other, updates=updates)


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_kind_in_each_dtype(dtype: str, run: Run, save: Save, tmp_path: Path) -> None:
    w, a, b = integers(7, 5), integers(3, 5), integers(7, 3)
    base, rows, vector = save(w, dtype), integers(2, 5, most=9), integers(7)
    lora = {"kind": "lora", "a": save(a, "BF16"), "b": save(b, "F16")}
    turned = {"kind": "lora", "a": save(b.T), "b": save(a.T), "transposed": True}
    other = {"kind": "tensor", "tensor": save(8 - w.T), "transposed": True}
    cases: list[tuple[Tensor, Any]] = [
        (tensor_of(base, Update(**lora)), w + b @ a),
        (tensor_of(base, Update(**lora, scale=0.5, weight=-2.0)), w - b @ a),
        (tensor_of(base, Update(**turned, scale=2.0)), w + 2 * b @ a),
        (tensor_of(base, Update(**lora), Update(**turned, weight=0.25)), w + 1.25 * (b @ a)),
        (tensor_of(base, Update(kind="tensor", tensor=save(-3 * w))), -3 * w),
        (tensor_of(base, Update(kind="tensor", tensor=save(-3 * w), weight=0.5)), 0 - w),
        (tensor_of(base, Update(kind="tensor", tensor=save(9 - w.T), transposed=True)), 9 - w),
        (tensor_of(base, Update(**other, weight=0.5), Update(**other, weight=0.25)), 6 - w / 2),
        (tensor_of(base, Update(kind="tensor", tensor=save(rows), indices=(6, 0))), numpy.vstack([rows[1], w[1:6], rows[0]])),
        (tensor_of(save(vector, dtype), Update(kind="vector", tensor=save(vector), scale=0.5, weight=3.0)), 2.5 * vector),
        (tensor_of(save(w[0, 0], dtype), Update(kind="vector", tensor=save(w[1, 1]))), w[0, 0] + w[1, 1]),
        (tensor_of(save(w[None], dtype), Update(**lora, at=0)), (w + b @ a)[None]),
    ]
    tensors = [msgspec.structs.replace(tensor, name=f"w{number}") for number, (tensor, _) in enumerate(cases)]
    said = run(plan_of(*tensors))
    header, content = read(tmp_path)
    for tensor, (_, due) in zip(tensors, cases, strict=True):
        assert content[tensor.name] == stored_bytes(due, dtype), tensor.name
        assert (header[tensor.name]["dtype"], tuple(header[tensor.name]["shape"])) == (dtype, numpy.shape(due))
    assert said["tensors"] == len(cases)


def test_numbers_that_changed_are_counted(run: Run, save: Save) -> None:
    base = save(numpy.full((6, 4), 256.0), "BF16")
    small = Update(kind="lora", a=save([[1.0, 0.5, 2.0, 0.0]]), b=save(numpy.ones((6, 1))))  # 2 is a last place of 256, 1 a half
    rows = Update(kind="tensor", tensor=save(numpy.full((2, 4), 3.0)), indices=(1, 4))
    assert run(plan_of(tensor_of(base, small))) == {"tensors": 1, "updated": 24, "changed": 6}
    assert run(plan_of(tensor_of(base, rows))) == {"tensors": 1, "updated": 8, "changed": 8}
    assert run(plan_of(tensor_of(base), tensor_of(base, name="v"))) == {"tensors": 2, "updated": 0, "changed": 0}
    assert run(Plan()) == {"tensors": 0, "updated": 0, "changed": 0}


@pytest.mark.parametrize(("dtype", "place"), [("BF16", 2.0**-7), ("F16", 2.0**-10)])
def test_half_a_last_place_goes_to_the_even_number(dtype: str, place: float, run: Run, save: Save, tmp_path: Path) -> None:
    w = numpy.array([1.0, 1 + place, 1.0, 1.0, -1 - place, 0.0])
    more = numpy.array([place / 2, place / 2, place * 0.51, place * 0.49, -place / 2, 2.0**-20])
    due = [1.0, 1 + 2 * place, 1 + place, 1.0, -1 - 2 * place, 2.0**-20]
    run(plan_of(tensor_of(save(w, dtype), Update(kind="vector", tensor=save(more)))))
    assert read(tmp_path)[1]["w"] == stored_bytes(due, dtype)


def test_one_sum_is_rounded_once(run: Run, save: Save, tmp_path: Path) -> None:
    half = Update(kind="vector", tensor=save([2.0**-9] * 3))  # a quarter of a last place
    run(plan_of(tensor_of(save(numpy.ones(3), "BF16"), half, half, half)))
    assert read(tmp_path)[1]["w"] == stored_bytes(numpy.full(3, 1 + 2.0**-7), "BF16")


def dora(w: Any, change: Any, magnitude: Any) -> Any:
    """The rule of peft/tuners/lora/variants.py, DoraLinearVariant.merge_unsafe, in float64."""
    moved = w + change
    return moved * (magnitude / numpy.sqrt((moved**2).sum(axis=1)))[:, None]


def test_dora_and_sums_with_it(run: Run, save: Save, tmp_path: Path) -> None:
    w, a, b, magnitude = integers(7, 5), integers(2, 5), integers(7, 2), numpy.arange(1.0, 8.0)
    update = {"kind": "dora", "a": save(a), "b": save(b), "magnitude": save(magnitude[None, :, None]), "scale": 0.5}
    turned = {"kind": "dora", "a": save(b.T), "b": save(a.T), "magnitude": save(numpy.arange(1.0, 6.0)), "transposed": True}
    plain = Update(kind="lora", a=save(a), b=save(b), weight=3.0)
    row, column = dora(w, b @ a / 2, magnitude), dora(w.T, (b @ a).T, numpy.arange(1.0, 6.0)).T
    stack = numpy.stack([w, -w])
    base = save(w)
    run(
        plan_of(
            tensor_of(base, Update(**update), name="row"),
            tensor_of(base, Update(**turned), name="column"),
            tensor_of(base, Update(**update, weight=0.5), Update(**turned, weight=-2.0), plain, name="sum"),
            tensor_of(save(stack), Update(**turned, at=0), name="stack"),
        )
    )
    values = {name: numpy.frombuffer(content, "<f4") for name, content in read(tmp_path)[1].items()}
    total = w + (row - w) / 2 - 2 * (column - w) + 3 * b @ a
    for name, due in {"row": row, "column": column, "sum": total, "stack": numpy.stack([column, -w])}.items():
        numpy.testing.assert_allclose(values[name], due.ravel(), rtol=1e-6, atol=1e-6)
    assert (values["stack"][35:] == -w.ravel()).all()


def test_experts_in_a_stack_with_factors_in_one_matrix(run: Run, save: Save, tmp_path: Path) -> None:
    """PEFT's lora_A has the experts one after the other, its lora_B takes turns (ParamWrapper.get_delta_weight)."""
    experts, rank, out, into = 3, 2, 5, 4
    w, a, b = integers(experts, out, into), integers(experts * rank, into), integers(out, rank * experts)
    updates = [
        Update(
            kind="lora",
            at=at,
            a=save(a, rows=(at * rank, (at + 1) * rank, 1)),
            b=save(b, columns=(at, rank * experts, experts)),
        )
        for at in (0, 2)
    ]
    delta = numpy.einsum("ore,eri->eoi", b.reshape(out, rank, experts), a.reshape(experts, rank, into))
    delta[1] = 0
    said = run(plan_of(tensor_of(save(w, "BF16"), *updates)))
    assert read(tmp_path)[1]["w"] == stored_bytes(w + delta, "BF16")
    assert said["updated"] == 2 * out * into


@pytest.mark.parametrize("dtype", ["BF16", "I64", "F8_E4M3"])
def test_parts_of_a_base(dtype: str, run: Run, save: Save, tmp_path: Path) -> None:
    w = abs(integers(8, 6))
    shapes = {(1, 8, 3): (None, (3, 6)), (0, 4, 1): ((1, 5, 2), (4, 2)), (2, 6, 1): (None, (4, 6)), None: ((0, 6, 2), (8, 3))}
    tensors, due = [], {}
    for number, (rows, (columns, shape)) in enumerate(shapes.items()):
        base = msgspec.structs.replace(save(w, dtype), rows=rows, columns=columns)
        tensors.append(tensor_of(base, name=f"w{number}", shape=shape))
        due[f"w{number}"] = stored_bytes(w[slice(*(rows or (None,))), slice(*(columns or (None,)))], dtype)
    run(plan_of(*tensors))
    assert read(tmp_path)[1] == due


def test_padded_cut_and_without_a_base(run: Run, save: Save, tmp_path: Path) -> None:
    w, more = integers(3, 4), integers(5, 4)
    base, update = save(w, "BF16"), Update(kind="tensor", tensor=save(more[3:]), indices=(3, 4))
    product = Update(kind="lora", a=save(integers(1, 4)), b=save(integers(5, 1)))
    said = run(
        plan_of(
            tensor_of(base, name="padded", shape=(5, 4)),
            tensor_of(base, update, name="longer", shape=(5, 4)),
            tensor_of(base, product, name="sum", shape=(5, 4)),
            tensor_of(base, name="cut", shape=(2, 4)),
            tensor_of(base, Update(kind="tensor", tensor=save(more)), name="new", shape=(5, 4), base=None),
            tensor_of(save(integers(2, 3, 4), "BF16"), name="stack"),
        )
    )
    padded = numpy.vstack([w, numpy.zeros((2, 4))])
    due = {"padded": padded, "longer": numpy.vstack([w, more[3:]]), "sum": padded + integers(5, 1) @ integers(1, 4)}
    due |= {"cut": w[:2], "new": more, "stack": integers(2, 3, 4)}
    assert read(tmp_path)[1] == {name: stored_bytes(values, "BF16") for name, values in due.items()}
    assert said["updated"] == 2 * 4 + 20 + 20


def test_another_dtype_than_the_base(run: Run, refusal: Callable[..., str], save: Save, tmp_path: Path) -> None:
    w, more = integers(5, 4) / 3, Update(kind="tensor", tensor=save(integers(5, 4)), weight=0.25)
    tensors = [tensor_of(save(w, "F64"), name="v", dtype="F32"), tensor_of(save(w), more, name="x", dtype="BF16")]
    said = run(plan_of(tensor_of(save(w), dtype="BF16"), *tensors))
    due = (w.astype("f4") + (integers(5, 4).astype("f4") - w.astype("f4")) / 4).astype("f4")
    assert read(tmp_path)[1] == {
        "w": stored_bytes(w.astype("f4"), "BF16"),
        "v": stored_bytes(w, "F32"),
        "x": stored_bytes(due, "BF16"),
    }
    assert said["updated"] == 20
    assert "too large for F16" in refusal(tensor_of(save([1e6]), dtype="F16"))


def test_what_no_update_touches_keeps_its_bits(run: Run, save: Save, tmp_path: Path) -> None:
    odd = numpy.array([[-0.0, numpy.nan, numpy.inf, 1.0]] * 4)
    odd[[0, 2]] = 1
    one = Update(kind="tensor", tensor=save(numpy.full((1, 4), 5.0)), indices=(2,))
    two = Update(kind="tensor", tensor=save(numpy.full((1, 4), 3.0)), indices=(0,), weight=2.0)
    due = odd.copy()
    due[2], due[0] = 5, 5
    for updates in ((one, two), (two, one)):
        run(plan_of(tensor_of(save(odd, "F16"), *updates)))
        assert read(tmp_path)[1]["w"] == stored_bytes(due, "F16")
    odd[1] = -0.0
    zero = Update(kind="tensor", tensor=save(numpy.zeros((1, 4))), indices=(1,))
    run(plan_of(tensor_of(save(odd, "BF16"), zero, two)))
    assert read(tmp_path)[1]["w"][24:] == stored_bytes(odd[3], "BF16")


@pytest.mark.parametrize("kernel", [True, False])
def test_several_files_with_all_kinds_of_tensors(
    kernel: bool, run: Run, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    kinds = {
        "I64": integers(5),
        "U8": abs(integers(300)),
        "BOOL": integers(3) > 0,
        "F8_E4M3": abs(integers(9, 9)),
        "F32": integers(0, 3),
    }
    tensors = {dtype: tensor_of(save(values, dtype), name=dtype) for dtype, values in kinds.items()}
    files = (
        File(path="a.safetensors", tensors=tuple(tensors[name] for name in ("U8", "F32", "I64")), metadata={"format": "pt"}),
        File(path="below/b.safetensors", tensors=tuple(tensors[name] for name in ("BOOL", "F8_E4M3"))),
    )
    assert run(Plan(files=files))["tensors"] == 5
    header, content = read(tmp_path, "a.safetensors")
    assert list(header) == ["__metadata__", "U8", "F32", "I64"] and header["__metadata__"] == {"format": "pt"}
    other, more = read(tmp_path, "below/b.safetensors")
    assert list(other) == ["BOOL", "F8_E4M3"]
    assert content | more == {name: stored_bytes(values, name) for name, values in kinds.items()}


def test_neighbours_in_both_files_are_copied_at_once(
    script: ModuleType, run: Run, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    own = script.copy
    monkeypatch.setattr(script, "copy", lambda *words: copies.append(words[-1]) or own(*words))
    values, between = (
        integers(8, 2),
        tensor_of(save(integers(3)), Update(kind="vector", tensor=save(integers(3))), name="between"),
    )
    whole = save(values)
    one, two = (msgspec.structs.replace(whole, offset=whole.offset + 32 * number, shape=(4, 2)) for number in (0, 1))
    run(plan_of(tensor_of(one, name="one"), tensor_of(two, name="two")))
    assert copies == [64]  # the most of a run
    run(plan_of(tensor_of(one, name="one"), between, tensor_of(two, name="two")))
    content = read(tmp_path)[1]
    assert content["one"] + content["two"] == stored_bytes(values, "F32")


@pytest.mark.parametrize("most", [None, 0, 1000, 1 << 30])
def test_a_copy_by_the_kernel_and_without(
    most: int | None, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(source: int, dest: int, count: int, offset: int, to: int) -> int:
        """As on a disk that gives up once so many bytes are copied."""
        if offset - 7 >= most:
            raise OSError(95, "not supported")
        content = os.pread(source, min(count, most), offset)
        return os.pwrite(dest, content, to)

    if most is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif hasattr(os, "pread"):
        monkeypatch.setattr(os, "copy_file_range", some, raising=False)
    content = numpy.random.default_rng(0).bytes(2_500_000)
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "dest").write_bytes(bytes(9))
    script.copy(str(tmp_path / "source"), 7, str(tmp_path / "dest"), 9, 2_400_000)
    assert (tmp_path / "dest").read_bytes() == bytes(9) + content[7:2_400_007]


def test_threads_change_nothing(run: Run, save: Save, tmp_path: Path) -> None:
    rng = numpy.random.default_rng(0)
    base, a, b = (save(rng.standard_normal(shape), "BF16") for shape in ((50, 6), (3, 6), (50, 3)))
    update = {"kind": "dora", "a": a, "b": b, "magnitude": save(rng.random(50))}
    contents = []
    for threads in (1, 5):
        run(plan_of(tensor_of(base, Update(**update, weight=0.3), Update(kind="lora", a=a, b=b, scale=1.7))), threads)
        contents.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_numbers_of_an_adapter_that_are_not_finite(value: float, refusal: Callable[..., str], save: Save) -> None:
    base, whole = save(integers(7, 5), "BF16"), integers(7, 5)
    whole[6, 4] = value
    bad, good = save(whole[6:], name="q.lora_A.weight"), save(integers(7, 1))
    assert "q.lora_A.weight in " in refusal(tensor_of(base, Update(kind="lora", a=bad, b=good)))
    assert "lm_head in " in refusal(tensor_of(base, Update(kind="tensor", tensor=save(whole, name="lm_head"))))
    vector = save(whole[:, 4], name="bias")
    assert "bias in " in refusal(tensor_of(save(integers(7)), Update(kind="vector", tensor=vector)))
    moved = msgspec.structs.replace(bad, offset=bad.offset + 4, shape=(1, 4))
    assert f"at byte {bad.offset + 4} of" in refusal(tensor_of(save(integers(7, 4)), Update(kind="lora", a=moved, b=good)))


@pytest.mark.parametrize(("dtype", "most"), [("F16", 60000.0), ("F32", 3e38), ("BF16", 3e38), ("F64", 1.7e308)])
def test_sums_too_large_for_the_dtype(dtype: str, most: float, refusal: Callable[..., str], save: Save) -> None:
    update = Update(kind="vector", tensor=save([0, 0, most, 0], "F64" if dtype == "F64" else "F32"))
    for sign in (1, -1):
        update = msgspec.structs.replace(update, scale=sign)
        assert f"model.w: a merged weight is infinite, NaN or too large for {dtype}" in refusal(
            tensor_of(save(sign * numpy.array([1, 1, most, 1]), dtype), update, name="model.w")
        )


def test_a_row_of_zeros_has_no_direction(refusal: Callable[..., str], save: Save) -> None:
    update = Update(kind="dora", a=save(numpy.zeros((1, 3))), b=save(numpy.zeros((2, 1))), magnitude=save([1.0, 1.0]))
    assert "NaN" in refusal(tensor_of(save(numpy.zeros((2, 3))), update))


def test_shapes_that_do_not_fit(refusal: Callable[..., str], save: Save) -> None:
    base, a, b = save(integers(7, 5)), save(integers(2, 5)), save(integers(7, 2))
    good = {"kind": "lora", "a": a, "b": b}
    for update in (
        Update(**good | {"a": save(integers(3, 5))}),
        Update(**good | {"b": save(integers(6, 2))}),
        Update(**good, transposed=True),
        Update(**good | {"kind": "dora", "magnitude": save(integers(5))}),
        Update(kind="tensor", tensor=save(integers(5, 7))),
        Update(kind="tensor", tensor=save(integers(7, 5)), transposed=True),
        Update(kind="tensor", tensor=save(integers(2, 5)), indices=(1, 7)),
        Update(kind="tensor", tensor=save(integers(2, 5)), indices=(1,)),
        Update(kind="vector", tensor=save(integers(7))),
    ):
        assert "w: what an adapter has for it does not fit 7 rows and 5 columns" in refusal(tensor_of(base, update))
    assert "does not fit" in refusal(tensor_of(base, shape=(7, 6)))
    stack = save(integers(2, 7, 5))
    assert "does not fit" in refusal(tensor_of(stack, Update(**good, at=0), shape=(2, 8, 5)))
    assert "stack" in refusal(tensor_of(stack, Update(**good, at=0), Update(kind="tensor", tensor=stack)))
    assert "stack" in refusal(tensor_of(base, Update(**good, at=0)))
    assert "stack of [2, 7, 5]" in refusal(tensor_of(stack, Update(**good, at=2)))


def test_types_that_nothing_can_be_added_to(refusal: Callable[..., str], save: Save) -> None:
    small = save(abs(integers(7, 5)), "F8_E4M3")
    update = Update(kind="tensor", tensor=save(integers(7, 5)))
    assert "F8_E4M3" in refusal(tensor_of(small, update))
    assert "F8_E4M3" in refusal(tensor_of(small, dtype="BF16"))
    assert "F8_E4M3" in refusal(tensor_of(save(integers(7, 5)), Update(kind="tensor", tensor=small)))
    assert "F4" in refusal(tensor_of(small, dtype="F4"))


@pytest.mark.parametrize("updated", [True, False])
def test_a_file_that_ends_too_early(updated: bool, refusal: Callable[..., str], save: Save) -> None:
    base = save(integers(7, 5))
    update = (Update(kind="tensor", tensor=save(integers(7, 5))),) if updated else ()
    with Path(base.file).open("r+b") as file:
        file.truncate(base.offset + 100)
    assert f"{base.file} ends within a tensor" in refusal(tensor_of(base, *update))
    Path(base.file).unlink()
    assert Path(base.file).name in refusal(tensor_of(base, *update))


def test_as_a_program(save: Save, tmp_path: Path) -> None:
    base = save(integers(7, 5))
    answer = tmp_path / "answer.json"
    argv = [sys.executable, str(inside.path("merge_weights")), str(asked(tmp_path, plan_of(tensor_of(base)))), str(answer)]
    done = subprocess.run(argv, capture_output=True, check=True, text=True)
    assert (done.stdout, done.stderr) == ("100%|\n", "")
    assert json.loads(answer.read_text()) == {"tensors": 1, "updated": 0, "changed": 0}
    Path(base.file).unlink()
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout.removeprefix("100%|\n"), len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("merge_weights: ")
