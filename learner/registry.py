"""Names people type -> backbones and methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module, resources
from typing import Any, cast

import torch
from safetensors.torch import load

from learner.backbones.base import Backbone
from learner.backbones.canonical import FORMS, CanonicalBackbone, through_pictures
from learner.backbones.tiny import SPECS, TinyBackbone
from learner.methods.base import Context, Method, UseOfExemplars
from store.lake import Lake
from store.types import Modality, PalimpsestError

HUB, CANONICAL = "hub:", "canonical"
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
    "comm": ("learner.methods.comm", "Comm"),
    "l2p": ("learner.methods.prompt_pools", "L2P"),
    "coda-prompt": ("learner.methods.prompt_pools", "CodaPrompt"),
    "zero-shot": ("learner.methods.zero_shot", "ZeroShot"),
}


def untrained(name: str) -> list[TinyBackbone]:
    """The backbones that are pre-trained together under `name`: they share their parameters, one takes each modality.

    Raises:
        PalimpsestError: nothing is called so.
    """
    if name == CANONICAL:
        first, *others = FORMS
        model = CanonicalBackbone(first)
        return [model, *(model.beside(modality) for modality in others)]
    if name not in SPECS:
        known = ", ".join([*sorted(SPECS), CANONICAL])
        raise PalimpsestError(f"no backbone is called {name!r}; there are: {known}, {HUB}NAME_OR_FOLDER")
    return [TinyBackbone(SPECS[name])]


def _loaded(name: str, lake: Lake, device: torch.device) -> list[TinyBackbone]:
    """Frozen backbones, with the weights that this lake pre-trained where it did, else those that ship.

    Raises:
        PalimpsestError: no such backbone, or no weights for it.
    """
    models = untrained(name)
    own = lake.backbones / f"{name}.safetensors"
    shipped = resources.files("learner.backbones") / f"weights/{name}.safetensors"
    if own.exists():
        data = own.read_bytes()
    elif shipped.is_file():
        data = shipped.read_bytes()
    else:
        raise PalimpsestError(f"backbone {name} has no weights: run `palimpsest pretrain` on unlabelled recordings")
    models[0].load_state_dict({key: value.float() for key, value in load(data).items()})
    for model in models:
        model.digest = hashlib.sha256(data + repr(model.spec).encode()).hexdigest()
        model.eval().requires_grad_(False).to(device)
    return models


def backbone(name: str, lake: Lake, device: torch.device) -> Backbone:
    """A frozen backbone that is pre-trained alone, such as ``tiny-audio``.

    Raises:
        PalimpsestError: no such backbone, or no weights for it.
    """
    return cast(Backbone, _loaded(name, lake, device)[0])


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


def needs_one_trunk(name: str) -> bool:
    """Whether a method sends all modalities through one trunk.

    Raises:
        PalimpsestError: no such method.
    """
    return getattr(_method(name), "one_trunk", False)


def one_trunk(names: Mapping[Modality, str]) -> bool:
    """Whether the backbones that a recipe names are one trunk."""
    (first, *others) = set(names.values())
    return len(names) == 1 or (not others and (first == CANONICAL or first.startswith(f"{CANONICAL}:")))


def _method(name: str) -> Any:
    if name not in METHODS:
        raise PalimpsestError(f"no method is called {name!r}; there are: {', '.join(METHODS)}")
    module, attribute = METHODS[name]
    return getattr(import_module(module), attribute)


def _canonical(name: str, lake: Lake, device: torch.device) -> Mapping[Modality, Backbone]:
    """The one trunk of that name as each modality enters it."""
    if name == CANONICAL:
        return {model.modality: cast(Backbone, model) for model in _loaded(CANONICAL, lake, device)}
    inner = name.removeprefix(f"{CANONICAL}:")
    if not inner.startswith(HUB):
        raise PalimpsestError(
            f"no backbone is called {name!r}; there are {CANONICAL} and {CANONICAL}:{HUB}NAME_OR_FOLDER"
        )
    images = _hub(inner, Modality.IMAGE, lake, device)
    return {modality: through_pictures(images, modality) for modality in FORMS}


def _hub(name: str, modality: Modality, lake: Lake, device: torch.device) -> Backbone:
    hub = import_module("learner.backbones.hub")  # transformers is an extra
    return cast(Backbone, hub.load(name.removeprefix(HUB), modality, lake).to(device))


def backbones(names: Mapping[str, str], lake: Lake, device: torch.device) -> dict[Modality, Backbone]:
    """The backbones of a recipe, by modality.

    A family's name (`tiny`) stands for its member of that modality, `hub:NAME_OR_FOLDER` for a transformers checkpoint,
    `canonical` for one trunk that all who name it share, `canonical:hub:NAME_OR_FOLDER` for a checkpoint for images
    that they share.

    Raises:
        PalimpsestError: a backbone is not for the modality that it is named for.
    """
    found: dict[Modality, Backbone] = {}
    shared = {
        name: _canonical(name, lake, device)
        for name in {name for name in names.values() if name.partition(":")[0] == CANONICAL}
    }
    for modality, name in names.items():
        if name in shared:
            if modality not in shared[name]:
                raise PalimpsestError(f"backbone {name} takes {', '.join(FORMS)}; the recipe names it for {modality}")
            found[Modality(modality)] = shared[name][Modality(modality)]
            continue
        if name.startswith(HUB):
            found[Modality(modality)] = _hub(name, Modality(modality), lake, device)
        else:
            found[Modality(modality)] = backbone(name if name in SPECS else f"{name}-{modality}", lake, device)
    for modality, model in found.items():
        if model.modality is not modality:
            raise PalimpsestError(f"backbone {model.name} is for {model.modality}, the recipe names it for {modality}")
    return found
