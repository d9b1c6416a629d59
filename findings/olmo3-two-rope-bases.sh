#!/usr/bin/env bash
# transformers 5.23.0: a config.json of OLMo 3 that names one rope_theta, as every one that version 4 saved does, comes back with two.
#
# The full attention layers get the file's base, the sliding ones the class's own default (500000), and save_pretrained writes both:
# a checkpoint whose base is not that default is another model after it was loaded. transformers 4.57.6 uses the file's base for all.
# Source: models/olmo3/configuration_olmo3.py, convert_rope_params_to_dict: it takes the key `rope_theta` away twice.
#
# Seen: {'sliding_attention': 500000.0, 'full_attention': 10000} with 5.23.0, and 10000 with 4.57.6. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/model"
cat > "$folder/model/config.json" <<'EOF'
{"model_type": "olmo3", "rope_theta": 10000, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
EOF
for version in 4.57.6 5.23.0; do
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip --disable-pip-version-check --quiet install "transformers==$version"
done
cd "$folder"
"$folder/4.57.6/bin/python" -c '
import sys, transformers
base = transformers.AutoConfig.from_pretrained("model").rope_theta
print("4.57.6:", base)
sys.exit(base != 10000)'
"$folder/5.23.0/bin/python" -c '
import sys, transformers
rope = transformers.AutoConfig.from_pretrained("model").rope_parameters
bases = {layers: part["rope_theta"] for layers, part in rope.items()}
print("5.23.0:", bases)
sys.exit(bases != {"sliding_attention": 500000.0, "full_attention": 10000})'
