"""Names people type -> backbones and methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module, resources
from typing import Any, cast

import torch
from safetensors.torch import load

from learner.backbones.base import Backbone
from learner.backbones.tiny import SPECS, TinyBackbone
from learner.methods.base import Context, Method, UseOfExemplars
from store.lake import Lake
from store.types import Modality, PalimpsestError

HUB = "hub:"
METHODS = {
    "crossmodal-moe": ("learner.methods.crossmodal_moe", "CrossModalMoE"),
    "finetune": ("learner.methods.finetune", "Finetune"),
    "joint": ("learner.methods.joint", "Joint"),
    "ewc": ("learner.methods.ewc", "EWC"),
    "lwf": ("learner.methods.lwf", "LwF"),
    "er": ("learner.methods.er", "ER"),
    "derpp": ("learner.methods.derpp", "DERpp"),
    "icarl": ("learner.methods.icarl", "ICaRL"),
    "simplecil": ("learner.methods.simplecil", "SimpleCIL"),
    "slda": ("learner.methods.slda", "SLDA"),
    "ranpac": ("learner.methods.ranpac", "RanPAC"),
    "moe-adapters": ("learner.methods.moe_adapters", "MoEAdapters"),
    "av-cil": ("learner.methods.av_cil", "AVCIL"),
}


def backbone(name: str, lake: Lake, device: torch.device) -> Backbone:
    """A frozen backbone by name, with the weights that this lake pre-trained where it did, else those that ship.

    Raises:
        PalimpsestError: no such backbone, or no weights for it.
    """
    if name not in SPECS:
        raise PalimpsestError(
            f"no backbone is called {name!r}; there are: {', '.join(sorted(SPECS))}, {HUB}NAME_OR_FOLDER"
        )
    own = lake.backbones / f"{name}.safetensors"
    shipped = resources.files("learner.backbones") / f"weights/{name}.safetensors"
    if own.exists():
        data = own.read_bytes()
    elif shipped.is_file():
        data = shipped.read_bytes()
    else:
        raise PalimpsestError(f"backbone {name} has no weights: run `palimpsest pretrain` on unlabelled recordings")
    model = TinyBackbone(SPECS[name])
    model.load_state_dict({key: value.float() for key, value in load(data).items()})
    model.digest = hashlib.sha256(data + repr(SPECS[name]).encode()).hexdigest()
    return cast(Backbone, model.eval().requires_grad_(False).to(device))


def method(name: str, context: Context, params: Mapping[str, Any]) -> Method:
    """A fresh method by name.

    Raises:
        PalimpsestError: no such method, or one of `params` is not of it.
    """
    try:
        return cast(Method, _method(name)(context, **params))
    except TypeError as error:
        raise PalimpsestError(f"method {name} does not take these parameters: {error}") from error


def exemplars(name: str) -> UseOfExemplars:
    """Whether a method can do without exemplars, or leaves them unused.

    Raises:
        PalimpsestError: no such method.
    """
    return getattr(_method(name), "exemplars", "optional")


def _method(name: str) -> Any:
    if name not in METHODS:
        raise PalimpsestError(f"no method is called {name!r}; there are: {', '.join(METHODS)}")
    module, attribute = METHODS[name]
    return getattr(import_module(module), attribute)


def backbones(names: Mapping[str, str], lake: Lake, device: torch.device) -> dict[Modality, Backbone]:
    """The backbones of a recipe, by modality.

    A family's name (`tiny`) stands for its member of that modality, `hub:NAME_OR_FOLDER` for a transformers checkpoint.

    Raises:
        PalimpsestError: a backbone is not for the modality that it is named for.
    """
    found: dict[Modality, Backbone] = {}
    for modality, name in names.items():
        if name.startswith(HUB):
            hub = import_module("learner.backbones.hub")  # transformers is an extra
            found[Modality(modality)] = hub.load(name.removeprefix(HUB), Modality(modality), lake).to(device)
        else:
            found[Modality(modality)] = backbone(name if name in SPECS else f"{name}-{modality}", lake, device)
    for modality, model in found.items():
        if model.modality is not modality:
            raise PalimpsestError(f"backbone {model.name} is for {model.modality}, the recipe names it for {modality}")
    return found
