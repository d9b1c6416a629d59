"""How a model's next tokens differ from what llama.cpp recorded: reference.py ASKED ANSWER, with the environment's python.

ASKED and ANSWER are JSON files. Asked: {"model": folder, "adapter": folder or "", "packages": folder with PEFT or "",
"tokens", "record": [file, start, bytes of a row], "first": position of the first row, "rows", "vocabulary"}. Answered:
{"unable": why nothing could be compared, or "", "positions": [[KL divergence, the model's likeliest token, llama.cpp's, how far
the model has that one behind its own]], "effect": by how much the adapter changes the model, as mean KL divergence}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

RANGE = 16.0  # what lies further below the likeliest token is not recorded (tools/perplexity/perplexity.cpp)


def recorded(asked: dict[str, Any]) -> Any:
    """The log-probabilities in the file: per row its scale and least value as floats, then a 16-bit number for each token."""
    path, start, stride = asked["record"]
    raw = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=start, shape=(asked["rows"], stride))
    scales = numpy.ascontiguousarray(raw[:, :8]).view("<f4").astype(numpy.float64)
    steps = numpy.ascontiguousarray(raw[:, 8 : 8 + 2 * asked["vocabulary"]]).view("<u2").astype(numpy.float64)
    return torch.from_numpy(scales[:, :1] * steps + scales[:, 1:])


def kind_of(folder: str) -> tuple[Any, str]:
    """The class that makes such a model whole, or why there is none."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        return None, f"this tag's transformers does not know the model ({str(error).strip().splitlines()[0]})"
    if getattr(config, "quantization_config", None):
        return None, "the source is quantized itself"
    if getattr(config, "is_encoder_decoder", False):
        return None, "the model has an encoder"
    for mapping, kind in (
        ("MODEL_FOR_CAUSAL_LM_MAPPING", "AutoModelForCausalLM"),
        ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "AutoModelForImageTextToText"),
    ):
        if type(config) in getattr(transformers, mapping, ()):
            return getattr(transformers, kind), ""
    return None, f"to transformers a model of the type {config.model_type} has no next token"


def logits(model: Any, asked: dict[str, Any]) -> Any:
    with torch.no_grad():
        found = model(input_ids=torch.tensor([asked["tokens"]]), use_cache=False).logits[0]
    return found[asked["first"] : asked["first"] + asked["rows"]].double()


def probabilities(values: Any, count: int) -> Any:
    """Log-probabilities over as many tokens as both sides have, with the floor that the file has."""
    values = values[:, :count]
    return torch.log_softmax(torch.maximum(values, values.max(-1, keepdim=True).values - RANGE), -1)


def divergence(wanted: Any, found: Any) -> Any:
    return (wanted.exp() * (wanted - found)).sum(-1)


def compare(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    theirs, mine = logits(model, asked), recorded(asked)
    count = min(theirs.shape[-1], mine.shape[-1])
    wanted, found = probabilities(theirs, count), probabilities(mine, count)
    best, chosen = wanted.argmax(-1), found.argmax(-1)
    behind = wanted.gather(-1, best[:, None]) - wanted.gather(-1, chosen[:, None])
    columns = (divergence(wanted, found), best, chosen, behind[:, 0])
    effect = 0.0
    if asked["adapter"]:
        with model.disable_adapter():
            effect = float(divergence(wanted, probabilities(logits(model, asked), count)).mean())
    return {"unable": "", "positions": list(zip(*(column.tolist() for column in columns), strict=True)), "effect": effect}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    kind, why = kind_of(asked["model"])
    if not kind:
        return {"unable": why}
    model, info = kind.from_pretrained(
        asked["model"], local_files_only=True, trust_remote_code=False, attn_implementation="eager", output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        return {"unable": f"the source has no {missing[0]}, which transformers would have to make up"}
    if asked["adapter"]:
        # Last, so that a PEFT of the environment's own comes first.
        sys.path.append(asked["packages"])
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, asked["adapter"])
    return compare(model.float().eval(), asked)


answer = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
