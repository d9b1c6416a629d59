"""The digest by which upstream knows a pre-tokenizer: pretokenizer_hash.py QUESTION ANSWER, with the environment's python.

Both are JSON files. Question: {"source": the tag's file with the text to tokenize, where `chktxt` stands, "model":
folder}. Answer: the digest, which the log has as well.
"""

import ast
import json
import sys
from hashlib import sha256
from pathlib import Path

from transformers import AutoTokenizer


def text_in(source: Path) -> str:
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "chktxt":
            return str(ast.literal_eval(node.value))
    sys.exit(f"no chktxt in {source}")


question = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
tokens = AutoTokenizer.from_pretrained(question["model"]).encode(text_in(Path(question["source"])))
digest = sha256(str(tokens).encode()).hexdigest()
print("chkhsh:", digest)
Path(sys.argv[2]).write_text(json.dumps(digest), encoding="utf-8")
