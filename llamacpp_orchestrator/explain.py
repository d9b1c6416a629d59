"""Upstream's failures in its own words, what each likely means, and what to do about it."""

from __future__ import annotations

import re

# Upstream's own words → what they likely mean, and what to do. First match wins.
KNOWN = (
    (
        r"Model (\S+) is not supported",
        "this tag's converter does not know the architecture {0}",
        "pin a newer tag, or see which it knows: orchestrate exec JOB -- convert_hf_to_gguf.py --print-supported-models",
    ),
    (
        r"BPE pre-tokenizer was not recognized",
        "this tag does not know the model's tokenizer",
        "pin a newer tag; if the tokenizer was changed while fine-tuning, use the original's tokenizer files",
    ),
    (
        r"trust_remote_code|requires you to execute the .* file",
        "the model wants to run its own Python code",
        "read that code, then set `trust_remote_code: true` for this model",
    ),
    (
        r"stat: path should be string.*NoneType|Either model_file or model_proto must be specified"
        r"|File not found: .*tokenizer\.model|Can't load tokenizer|Couldn't instantiate the backend tokenizer",
        "the model has no tokenizer that this tag can read",
        "add the tokenizer files of the original model (tokenizer.json or tokenizer.model)",
    ),
    (
        r"mmap length is greater than file size|incomplete metadata|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer",
        "a safetensors file is cut or damaged",
        "download or copy it again",
    ),
    (r"Missing tensors: (.*)", "tensors that the index names are in no file: {0}", "get all shards of the model"),
    (
        r"Can not map tensor '([^']+)'|Unable to map tensor|Unexpected name '([^']+)': Not a lora_A or lora_B tensor",
        "this architecture has no place for a tensor ({0})",
        "pin a newer tag, or merge the adapter into its base and convert that",
    ),
    (
        r"Embeddings is present in the adapter",
        "the adapter also trains the vocabulary, which a GGUF adapter cannot hold",
        "merge it into its base and convert that",
    ),
    (r"does not exist|No such file or directory: '([^']+)'", "a file that the script wants is not there", "see the log"),
    (r"No space left on device|Errno 28", "the disk is full", "free some space and run again"),
    (
        r"MemoryError|Unable to allocate|not enough memory",
        "the machine ran out of memory",
        "close other programs, or use --jobs 1",
    ),
    (
        r"unrecognized arguments: (.*)",
        "this tag's script does not have the option {0}",
        "correct `args`, or pin a tag that has it",
    ),
    (
        r"No module named '([^']+)'",
        "the environment lacks the module {0}",
        "add it under `environment.overrides` or choose another tag",
    ),
)


def explain(tail: str) -> tuple[str, str]:
    """The likely cause and the remedy for upstream's last lines; two empty texts when nobody knows."""
    for pattern, cause, remedy in KNOWN:
        if match := re.search(pattern, tail):
            found = [group for group in match.groups() if group]
            return cause.format(*(found or ["?"])), remedy
    return "", ""
