"""A run's state inside a task, overwritten as it goes; torch on this side, `store.snapshots` trees on the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from store.snapshots import load_tree, save_tree
from store.types import PalimpsestError

PARTS = {"place", "step", "losses", "method", "optimizer"}


def to_arrays(node: Any) -> Any:
    """A nested state with its tensors as numpy arrays; keys become strings."""
    if isinstance(node, torch.Tensor):
        return node.detach().cpu().numpy()
    if isinstance(node, Mapping):
        return {str(key): to_arrays(value) for key, value in node.items()}
    return [to_arrays(value) for value in node] if isinstance(node, list | tuple) else node


def to_tensors(node: Any) -> Any:
    """The inverse of `to_arrays`, keys apart."""
    if isinstance(node, np.ndarray):
        return torch.from_numpy(node)
    if isinstance(node, Mapping):
        return {key: to_tensors(value) for key, value in node.items()}
    return [to_tensors(value) for value in node] if isinstance(node, list) else node


def save_checkpoint(folder: Path, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None) -> None:
    """Overwrite the checkpoint in one step."""
    slots = optimizer.state_dict()["state"] if optimizer else {}
    save_tree(folder, to_arrays({**state, "optimizer": slots}))


def load_checkpoint(
    folder: Path, place: Mapping[str, Any], *, method: Iterable[str], slots: int
) -> dict[str, Any] | None:
    """The checkpoint of `place`, or None where there is none that is whole: a task can always begin again.

    Args:
        folder: where it lies.
        place: the integers and names that say what is being learnt, in which order, after what; a checkpoint of
            another place is left from an earlier task.
        method: the parts of the method's state.
        slots: parameters that the optimiser holds.

    Raises:
        PalimpsestError: the checkpoint holds parts that are not known here, or lacks some.
    """
    try:
        saved = to_tensors(load_tree(folder)) if folder.exists() else None
    except PalimpsestError:
        return None
    if saved is None:
        return None
    odd = (saved.keys() ^ PARTS) | (saved.get("place", {}).keys() ^ place.keys())
    if not odd and saved["place"] == place:
        odd = (saved["method"].keys() ^ set(method)) | (saved["optimizer"].keys() - set(map(str, range(slots))))
    if odd:
        raise PalimpsestError(
            f"the checkpoint in {folder} was written by another version: {', '.join(sorted(odd))} is not in both. "
            "Delete that folder to begin the task again."
        )
    return saved if saved["place"] == place else None


def restore_optimizer(optimizer: torch.optim.Optimizer, slots: Mapping[str, Any]) -> None:
    """Give `optimizer` its moments back; hyper-parameters come from the recipe."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {int(key): value for key, value in slots.items()}, "param_groups": groups})


def drop_checkpoint(folder: Path) -> None:
    """Forget the checkpoint: a snapshot has taken its place."""
    shutil.rmtree(folder, ignore_errors=True)
