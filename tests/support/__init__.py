"""What tests and tools share: makers of inputs, stand-ins for servers and programs, and these constants."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAG = "b11434"
# Nothing listens there.
NOWHERE = "http://127.0.0.1:9"
