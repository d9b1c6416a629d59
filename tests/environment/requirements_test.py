"""Requirements of upstream's scripts: what is read of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.environment import requirements
from llamacpp_orchestrator.errors import OrchestrateError


def tree(folder: Path, **files: str) -> Path:
    (folder / "requirements").mkdir(parents=True)
    for name, text in files.items():
        (folder / "requirements" / f"requirements-{name}.txt").write_text(text)
    return folder


def test_requirements_of_both_scripts_without_index_lines_and_machines_that_we_do_not_serve(tmp_path: Path) -> None:
    legacy = "numpy~=1.26.4  # a comment\nprotobuf>=4.21.0,<5.0.0\n"
    hf = "-r ./requirements-convert_legacy_llama.txt\n--extra-index-url https://example.org/whl\n\n## why\n"
    hf += 'torch==2.11.0; platform_machine != "s390x"\ntorch>=0.0.0.dev0; platform_machine == "s390x"\n'
    lora = "-r ./requirements-convert_hf_to_gguf.txt\n--extra-index-url https://example.org/whl\n"
    root = tree(tmp_path, convert_hf_to_gguf=hf, convert_lora_to_gguf=lora, convert_legacy_llama=legacy)
    found = requirements.upstream_requirements(root)
    assert found == ("numpy~=1.26.4", "protobuf>=4.21.0,<5.0.0", 'torch==2.11.0; platform_machine != "s390x"')


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        (None, "has no requirements/requirements-convert_hf_to_gguf.txt"),
        ("-r ../../outside.txt", "outside of the tree"),
        (
            "-r ./missing.txt",
            "requirements-convert_hf_to_gguf.txt of this llama.cpp includes ./missing.txt, which it does not have",
        ),
        ("not a requirement!", "is not a requirement"),
    ],
)
def test_requirements_that_cannot_be_read(tmp_path: Path, hf: str | None, message: str) -> None:
    root = tree(tmp_path / "tree", **({"convert_hf_to_gguf": hf} if hf else {}), convert_lora_to_gguf="")
    with pytest.raises(OrchestrateError, match=message.replace("(", "\\(")):
        requirements.upstream_requirements(root)


def test_a_cycle_of_requirement_files_ends(tmp_path: Path) -> None:
    name = "convert_hf_to_gguf"
    root = tree(tmp_path, **{name: f"-r requirements-{name}.txt\nnumpy\n"}, convert_lora_to_gguf="")
    assert requirements.upstream_requirements(root) == ("numpy",)
