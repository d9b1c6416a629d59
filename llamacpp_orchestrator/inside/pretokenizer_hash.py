"""The digest by which upstream knows a pre-tokenizer; run by the environment's python.

Called as pretokenizer_hash.py SOURCE MODEL_FOLDER. The text that is tokenized for it is read from the tag's own source, where
`chktxt` stands.
"""

import ast
import sys
from hashlib import sha256
from pathlib import Path

from transformers import AutoTokenizer


def text_in(source: Path) -> str:
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "chktxt":
            return str(ast.literal_eval(node.value))
    sys.exit(f"no chktxt in {source}")


tokens = AutoTokenizer.from_pretrained(sys.argv[2]).encode(text_in(Path(sys.argv[1])))
print("chkhsh:", sha256(str(tokens).encode()).hexdigest())
