"""Write pickled weights as safetensors, for a merge reads no other; run by the environment's python.

Called as pickled_weights.py ASKED ANSWER: files with JSON. ASKED is {"files": paths of pytorch_model*.bin, "dest": folder}.
ANSWER tells the file of each tensor. Only tensors are taken out of a pickle (`weights_only`); those that share memory are
written apart. Ends with 1 and one line on standard error for a file that holds anything else.
"""

import json
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def converted(path: Path, dest: Path) -> dict[str, str]:
    """The tensors of one file, by name with the name of their new file."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    name = path.name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
    own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    save_file(own, dest / name, {"format": "pt"})
    return dict.fromkeys(tensors, name)


def main(asked: Path, answer: Path) -> None:
    question = json.loads(asked.read_text(encoding="utf-8"))
    places: dict[str, str] = {}
    for path in map(Path, question["files"]):
        try:
            places |= converted(path, Path(question["dest"]))
        except (RuntimeError, ValueError, AttributeError, EOFError, OSError, pickle.UnpicklingError) as error:
            sys.exit(f"pickled_weights: {path.name} holds no weights that can be read: {str(error).splitlines()[0]}")
    answer.write_text(json.dumps(places), encoding="utf-8")


main(Path(sys.argv[1]), Path(sys.argv[2]))
