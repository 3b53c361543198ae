"""The method in one sitting: short, free of the package but for images, and its losses are those of the package."""
import ast
import re

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given

from crlsr.contrast import bidirectional_contrastive_loss
from crlsr.refinement import conditional_contrastive_loss
from tests import notebooks

PATH = notebooks.NBS / "00_start" / "01_method.ipynb"
CODE = [notebooks.source(cell) for cell in notebooks.read(PATH)["cells"] if cell["cell_type"] == "code"]


def functions(*names):
    "Functions that the notebook defines, made from its text alone."
    space = {"torch": torch, "F": F, "Tensor": torch.Tensor, "T": 0.07}
    for code in CODE:
        for node in ast.parse(code).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                exec(ast.unparse(node), space)
    return [space[name] for name in names]


def test_it_is_a_hundred_and_twenty_lines_at_most():
    lines = [line for code in CODE for line in code.splitlines() if line.strip() and not re.match("import |from ", line)]
    assert 60 < len(lines) <= 120


def test_it_borrows_images_alone_before_the_comparison_at_its_end():
    imported = [(number, node.module) for number, code in enumerate(CODE) for node in ast.parse(code).body
                if isinstance(node, ast.ImportFrom) and node.module.startswith("crlsr")]
    assert {module for number, module in imported if number < len(CODE) - 2} == {"crlsr.data", "crlsr.images"}
    assert {module for number, module in imported if number >= len(CODE) - 2} == {"crlsr.model", "crlsr.model.decoupling"}


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(2, 9), st.sampled_from([2, 5, 64]))
def test_its_losses_are_those_of_the_package(seed, batch, count, size):
    draw = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, batch, count, size, generator=draw)
    l_bc, l_srnce = functions("l_bc", "l_srnce")
    torch.testing.assert_close(l_bc(a, b), bidirectional_contrastive_loss(a, b, 0.07), rtol=0, atol=1e-5)
    torch.testing.assert_close(l_srnce(a, b, c), conditional_contrastive_loss(a, b, c, 0.07), rtol=0, atol=1e-5)
