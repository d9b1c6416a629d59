#!/usr/bin/env bash
# sentencepiece 0.2.3 with protobuf 6.33.0, and with 7.36.2.
#
# The wheel carries sentencepiece_model_pb2.py as protobuf 7.36.1 generates it, and declares no requirement on protobuf: every older
# protobuf is taken for good by pip and uv, and the import ends in VersionError. sentencepiece 0.2.2 has no such limit. Who pins
# protobuf below 7 and leaves sentencepiece open loses T5, XLM-R and InternLM2 on the day of that release.
# Source: sentencepiece/sentencepiece_model_pb2.py, ValidateProtobufRuntimeVersion.
#
# Seen: 0.2.3 with 6.33.0 VersionError, 0.2.3 with 7.36.2 imported, 0.2.2 with 6.33.0 imported. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
try() {
    "${PYTHON:-python3}" -m venv "$folder/$1-$2"
    "$folder/$1-$2/bin/python" -m pip --disable-pip-version-check --quiet install "sentencepiece==$1" "protobuf==$2"
    "$folder/$1-$2/bin/python" - "$1" "$2" "$3" <<'EOF'
import sys

try:
    from sentencepiece import sentencepiece_model_pb2  # noqa: F401

    seen = "imported"
except Exception as error:
    seen = type(error).__name__
print(f"sentencepiece {sys.argv[1]} with protobuf {sys.argv[2]}: {seen}")
sys.exit(seen != sys.argv[3])
EOF
}
try 0.2.3 6.33.0 VersionError
try 0.2.3 7.36.2 imported
try 0.2.2 6.33.0 imported
