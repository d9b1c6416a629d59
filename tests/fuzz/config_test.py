"""What this machine says: config.yaml, pip's files, and the environment's variables."""

from __future__ import annotations

import os

from hypothesis import strategies as st

from llamacpp_orchestrator.system import settings
from tests.fuzz.common import JOB_LETTERS
from tests.fuzz.common import JOB_LINES
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import reading
from tests.fuzz.common import spoilt
from tests.fuzz.common import words
from tests.fuzz.common import yaml_text

CONFIG = {
    "cache_dir": "~/cache",
    "github": ["https://a.example", "https://b.example"],
    "huggingface": "https://hf.example https://huggingface.co",
    "llama_cpp_from": ["git", "pypi"],
    "token_hosts": ["a.example"],
    "memory": "8G",
    "index_url": "https://pypi.org/simple",
    "extra_index_urls": ["https://c.example/simple"],
    "find_links": ["./wheels", "https://d.example/"],
    "cert": "",
}
PIP = b"[global]\nindex-url = https://pypi.org/simple\nextra-index-url =\n    https://a.example/s\n[install]\nfind-links = /x\n"
NAMES = (
    "HF_ENDPOINT", "ORCHESTRATE_GITHUB_URL", "ORCHESTRATE_TORCH_INDEX", "ORCHESTRATE_LLAMA_CPP_FROM", "ORCHESTRATE_MEMORY",
    "ORCHESTRATE_TOKEN_HOSTS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT", "UV_INDEX", "UV_FIND_LINKS",
    "ORCHESTRATE_CACHE_DIR",
)  # fmt: skip


@fuzzed(yaml_text(CONFIG))
def test_the_config_file(text: bytes) -> None:
    with folder() as here:
        (here / "config.yaml").write_bytes(text)
        environ = {"ORCHESTRATE_CONFIG": str(here / "config.yaml"), "PIP_CONFIG_FILE": os.devnull}
        reading(lambda: settings.load(environ), JOB_LINES, JOB_LETTERS)


@fuzzed(spoilt(st.just(PIP)) | st.binary(max_size=200))
def test_the_files_of_pip(text: bytes) -> None:
    with folder() as here:
        (here / "pip.conf").write_bytes(text)
        (here / "config.yaml").touch()
        environ = {"ORCHESTRATE_CONFIG": str(here / "config.yaml"), "PIP_CONFIG_FILE": str(here / "pip.conf")}
        reading(lambda: settings.load(environ))


@fuzzed(st.dictionaries(st.sampled_from(NAMES), words.filter(lambda text: "\0" not in text and text.isascii())))
def test_variables(variables: dict[str, str]) -> None:
    with folder() as here:
        (here / "config.yaml").touch()
        environ = variables | {"ORCHESTRATE_CONFIG": str(here / "config.yaml"), "PIP_CONFIG_FILE": os.devnull}
        reading(lambda: settings.load(environ))
