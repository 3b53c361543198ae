"""Rows about L_bc: its table of similarities against the same loss by a library, and one table against two."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crlsr.contrast import BatchNegatives, Construction, PositionNegatives, bidirectional_contrastive_loss
from crlsr.contrast.negatives import directed_loss
from crlsr.core import generator
from tests.bench import paired

B, M, D, T = 16, 256, 256, 0.07


def _vectors(side: str) -> Tensor:
    return torch.randn(B, M, D, generator=generator("bench", side))


def _ours() -> float:
    "One direction, forward and backward: 4096 anchors against 4096 keys."
    query, key = (_vectors(side).requires_grad_() for side in "lh")
    loss = directed_loss(query, key, BatchNegatives()(query, key), T)
    loss.backward()
    return loss.item()


def _library(loss_fn: torch.nn.Module, block: int) -> float:
    "The same, `block` anchors at a time."
    query, key = (_vectors(side).flatten(0, 1).requires_grad_() for side in "lh")  # (B, M, D) -> (B*M, D)
    labels, total = torch.arange(B * M), 0.0
    for i in range(0, B * M, block):
        part = loss_fn(query[i : i + block], labels[i : i + block], ref_emb=key, ref_labels=labels) * block / (B * M)
        part.backward()
        total += part.item()
    return total


def _against(loss_fn: torch.nn.Module, block: int, pairs: int) -> str:
    ours, theirs = _ours(), _library(loss_fn, block)
    assert abs(ours - theirs) < 1e-5, f"{ours} is not {theirs}"
    return paired(_ours, lambda: _library(loss_fn, block), pairs)


def lbc_vs_library() -> str:
    """L_bc with `batch`, 16x256 vectors of 256 dimensions, one direction, against pytorch-metric-learning's NTXentLoss in blocks of 16 anchors,
    its fastest: a table of positive by negative pairs grows with the square of the anchors, and would need 275 GB for all 4096 at once."""
    from pytorch_metric_learning.losses import NTXentLoss

    return _against(NTXentLoss(T), block=16, pairs=3)


def lbc_vs_supcon() -> str:
    "The same against that library's SupConLoss in one piece: equal for one positive, and its fastest way to this value."
    from pytorch_metric_learning.losses import SupConLoss

    return _against(SupConLoss(T), block=B * M, pairs=3)


def _both(negatives: Construction | None) -> float:
    "L_bc of 8x128 vectors of 64 dimensions, those of a step of the cpu profile, forward and backward."
    q_l, q_h = (torch.randn(8, 128, 64, generator=generator("bench", side)).requires_grad_() for side in "lh")
    loss = bidirectional_contrastive_loss(q_l, q_h, T, negatives)
    loss.backward()
    return loss.item()


def lbc_one_table() -> str:
    "The default of L_bc, both directions from one table ('ours'), against the same by two calls of `info_nce` ('plain')."
    assert abs(_both(None) - _both(PositionNegatives())) < 1e-5
    return paired(lambda: _both(None), lambda: _both(PositionNegatives()), pairs=25)


ROWS: dict[str, Callable[[], str]] = {"lbc-vs-library": lbc_vs_library, "lbc-vs-supcon": lbc_vs_supcon, "lbc-one-table": lbc_one_table}
