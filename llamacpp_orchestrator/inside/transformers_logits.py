"""Compare a model's next tokens with what llama.cpp recorded; run by the reference environment's python.

Called as transformers_logits.py QUESTION ANSWER. Both are JSON files. Question: {"model": folder, "adapter": folder or
"", "tokens", "record": [file, start, bytes of a row], "first": position of the first row, "rows", "vocabulary"}. Answer:
{"by": what was compared with, "unable": why nothing could be compared, or "", "notes": where versions of transformers differ
about the model, "positions": [[KL divergence, the model's likeliest token, llama.cpp's, how far the model has that one behind
its own]], "effect": by how much the adapter changes the model, as mean KL divergence}.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers import AutoModelForImageTextToText
from transformers import PreTrainedModel

RANGE = 16.0  # what lies further below the likeliest token is not recorded (tools/perplexity/perplexity.cpp)
ROWS = 8  # are compared at a time, in float64
BY = f"transformers {transformers.__version__}"


def recorded(question: dict[str, Any], begin: int, end: int) -> Any:
    """Log-probabilities in the file, [rows, tokens]: per row its scale and least value as floats, then a 16-bit number each."""
    path, start, stride = question["record"]
    raw = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=start, shape=(question["rows"], stride))[begin:end]
    scales = numpy.ascontiguousarray(raw[:, :8]).view("<f4").astype(numpy.float64)
    steps = numpy.ascontiguousarray(raw[:, 8 : 8 + 2 * question["vocabulary"]]).view("<u2").astype(numpy.float64)
    return torch.from_numpy(scales[:, :1] * steps + scales[:, 1:])


def numbers(value: Any, key: str) -> Iterator[float]:
    """Every number under a key that ends so, however deep."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if str(name).endswith(key) and isinstance(inner, (int, float)):
            yield float(inner)
        yield from numbers(inner, key)


def misread(folder: str, config: Any) -> str:
    """The rope base that this transformers takes instead of the file's, in words; "" where it reads it rightly.

    5.23.0 gives the base of a config that 4 has saved to the first kind of layers only, for Olmo 3 (configuration_olmo3.py).
    """
    written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    bases = {*numbers(written, "rope_theta"), *numbers(written, "base_freq")}
    text = config.get_text_config()
    default = getattr(text, "default_theta", None)
    usual = set(default.values()) if isinstance(default, dict) else set()  # for kinds of layers that a file need not name
    strange = [base for base in numbers(text.to_dict(), "rope_theta") if bases and base not in bases | usual]
    return f"{BY} takes {strange[0]:g} for its rope base, where its config.json says {max(bases):g}" if strange else ""


def kind_of(folder: str) -> tuple[Any, str]:
    """The class that makes such a model whole, or None and the reason why there is none."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        return None, f"{BY} does not know the model ({str(error).strip().splitlines()[0]})"
    if getattr(config, "quantization_config", None):
        return None, "the source is quantized itself"
    if getattr(config, "is_encoder_decoder", False):
        return None, "the model has an encoder"
    if why := misread(folder, config):
        return None, why
    for mapping, kind in (
        ("MODEL_FOR_CAUSAL_LM_MAPPING", AutoModelForCausalLM),
        ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", AutoModelForImageTextToText),
    ):
        if type(config) in getattr(transformers, mapping, ()):
            return kind, ""
    return None, f"to transformers a model of the type {config.model_type} has no next token"


def notes(model: PreTrainedModel) -> list[str]:
    """Notes on what versions of transformers differ about in a model."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and all(ends) and ends[0].weight is not ends[1].weight and not torch.equal(ends[0].weight, ends[1].weight):
        return [f"its config says tied, and it has a head of its own: {BY} keeps that, transformers 4 drops it"]
    return []


def logits(model: Any, question: dict[str, Any], kept: dict[str, int]) -> Any:
    """Of the positions that are compared, [rows, tokens]."""
    with torch.no_grad():
        values = model(input_ids=torch.tensor([question["tokens"]]), use_cache=False, **kept).logits[0]
    left = len(question["tokens"]) - values.shape[0]
    return values[question["first"] - left : question["first"] - left + question["rows"]]


def probabilities(values: Any, count: int) -> Any:
    """Log-probabilities over as many tokens as both sides have, with the floor that the file has."""
    values = values[:, :count].double()
    return torch.log_softmax(torch.maximum(values, values.max(-1, keepdim=True).values - RANGE), -1)


def divergence(due: Any, have: Any) -> Any:
    return (due.exp() * (due - have)).sum(-1)


def positions(theirs: Any, question: dict[str, Any]) -> Iterator[tuple[float, int, int, float]]:
    count = min(theirs.shape[-1], question["vocabulary"])
    for begin in range(0, question["rows"], ROWS):
        end = min(begin + ROWS, question["rows"])
        due, have = probabilities(theirs[begin:end], count), probabilities(recorded(question, begin, end), count)
        best, chosen = due.argmax(-1), have.argmax(-1)
        behind = due.gather(-1, best[:, None]) - due.gather(-1, chosen[:, None])
        columns = (divergence(due, have), best, chosen, behind[:, 0])
        yield from zip(*(column.tolist() for column in columns), strict=True)


def effect(theirs: Any, bare: Any) -> float:
    """How far a model is from the same without its adapter: the mean KL divergence."""
    pairs = zip(theirs.split(ROWS), bare.split(ROWS), strict=True)
    parts = [divergence(probabilities(one, one.shape[-1]), probabilities(two, two.shape[-1])) for one, two in pairs]
    return float(torch.cat(parts).mean())


def main(question: dict[str, Any]) -> dict[str, Any]:
    kind, why = kind_of(question["model"])
    if not kind:
        return {"by": BY, "unable": why}
    model, info = kind.from_pretrained(
        question["model"],
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        return {"by": BY, "unable": f"the source has no {missing[0]}, which transformers would have to make up"}
    # The logits of positions that nobody looks at would take half of the memory.
    able = "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": len(question["tokens"]) - question["first"]} if able else {}
    lines, by = notes(model), BY
    if question["adapter"]:
        import peft

        model, by = peft.PeftModel.from_pretrained(model, question["adapter"]), f"{BY} and PEFT {peft.__version__}"
    theirs = logits(model.float().eval(), question, kept)
    answer: dict[str, Any] = {"by": by, "notes": lines, "positions": list(positions(theirs, question))}
    if question["adapter"]:
        with model.disable_adapter():
            answer["effect"] = effect(theirs, logits(model, question, kept))
    return answer


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
