"""The Python of docs/architecture.md does what it says."""

import re
from pathlib import Path

import pytest
import torch

from anticustom.identities import Portraits
from anticustom.images import read_png

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
STEPS = 3


def test_the_python_of_the_page_protects_photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shorter = code.replace("steps=100", f"steps={STEPS}")
    assert shorter != code
    exec(shorter, {})
    clean = Portraits().read("0", size=128).set_B
    protected = torch.stack([read_png(Path("protected") / name) for name in clean.names])
    change = (protected - clean.images).abs().amax((1, 2, 3)) * 255
    assert change.tolist() == pytest.approx([round(STEPS * 0.6375)] * len(clean.names), abs=1e-3)
