"""Texts for the page: no folder of this machine, no progress, nothing that a screen obeys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.report import words

Job = Callable[..., Path]


@pytest.fixture
def clean(world: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.setenv("HF_HOME", "/data/my models/hf")
    file = job({"source": "/data/my models/base", "loras": [{"source": "./lo ra", "name": "l"}]}, "org/m", output="/out put/dist")
    return words.cleaner(cli_options.load(file, {}, folders=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/my models/base/config.json: no such file", "base/config.json: no such file"),
        ("open('/data/my models/hf/hub/models--a--b/x')", "open('{hub}/models--a--b/x')"),
        ("wrote /out put/dist/m.gguf", "wrote {output}/m.gguf"),
        ("{world}/lo ra/adapter_config.json", "lo ra/adapter_config.json"),
        ("{world}/job.yaml", "{{job}}/job.yaml"),
        ("{cache}/source/x.py", "{{cache}}/source/x.py"),
        ('File "/usr/lib/python3.11/json/decoder.py", line 1', 'File "…/decoder.py", line 1'),
        ("log:/var/log/x.log,/srv/a/b=/etc/ssl/c", "log:…/x.log,…/b=…/c"),
        (r"C:\Users\me\m\config.json or D:/work/x", "…/config.json or …/x"),
        (r"\\server\share\m\x.bin", "…/x.bin"),
        ("file:///home/me/x and (/opt/me/y)", "…/x and (…/y)"),
        # These are no paths of a machine.
        ("https://huggingface.co/org/m/tree/main", "https://huggingface.co/org/m/tree/main"),
        (
            "org/m and a/b/c, ./x/y, ../x/y, ~/x/y, 1 / 2 / 3, </s>, [/INST]",
            "org/m and a/b/c, ./x/y, ../x/y, ~/x/y, 1 / 2 / 3, </s>, [/INST]",
        ),
        ("{python} {tree}/conversion/base.py", "{python} {tree}/conversion/base.py"),
        (r"a regular expression: \d+\w+\s", r"a regular expression: \d+\w+\s"),
        ("https://me:pw@host/x/y/z", "https://host/x/y/z"),
        ("a\x1b[31mb\u202ec\x00\udcff", r"a\x1b[31mb\u202ec\x00\udcff"),
        ("", ""),
    ],
)
def test_a_text_names_no_folder_of_this_machine(
    text: str, expected: str, clean: Callable[[str], str], world: Path, shared_cache: Path
) -> None:
    for name, place in (("{world}", world), ("{cache}", shared_cache)):
        if name in text and "{python}" not in text:
            text, expected = text.replace(name, str(place)), expected.replace("{{", "{").replace("}}", "}")
    assert clean(text) == expected


def test_the_end_of_a_log() -> None:
    said = [f"line {number}" for number in range(30)]
    progress = [
        " 45%|████ | 3/7 [00:01<00:02]",
        "[  12/ 201]  blk.0.attn_k.weight",
        "$ python x.py",
        "[1]4.2181,[2]5.9,",
        "[1]nan,",
        "",
        "  ",
    ]
    assert words.end_of([*said, *progress]) == tuple(said[-20:])
    assert words.end_of(["[1] is a footnote", *progress]) == ("[1] is a footnote",)
    assert words.end_of([]) == ()


def test_the_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert words.lines_of(log) == [] and words.lines_of(tmp_path) == []
    log.write_bytes(b"first\r\nbar 1%\rbar 2%\rbar 100%\r\nlast \xff\n")
    assert words.lines_of(log) == ["first", "bar 100%", "last \ufffd", ""]
    log.write_bytes(b"x" * 100_000 + b"\nlast")
    lines = words.lines_of(log)
    assert lines[-1] == "last" and len(lines[0]) < 65536
