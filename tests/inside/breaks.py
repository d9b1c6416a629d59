"""What the reference says of many sources in one process: breaks.py FOLDER LIST, the second a JSON list of what it is asked."""

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import transformers_logits  # noqa: E402 - the package's own, which needs nothing else of it

for path in json.loads(Path(sys.argv[2]).read_text()):
    asked = json.loads(Path(path).read_text())
    Path(path).with_suffix(".answer").write_text(json.dumps(transformers_logits.main(asked)))
