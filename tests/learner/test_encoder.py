"""MMEncoder and its parts: what adapters add to frozen backbones, to whom, and what stays as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.backbones.base import through
from learner.backbones.tiny import TinyBackbone, TinySpec
from learner.batch import Batch
from learner.modules.adapter import CrossModalAdapter
from learner.modules.encoder import MMEncoder, block_groups, first_adapters
from learner.modules.experts import Experts
from learner.modules.heads import CosineHead
from learner.modules.network import Network, NetworkShape, gate_use, router_noise
from learner.modules.router import Router
from store.types import Modality, PalimpsestError

A, V, I = Modality.AUDIO, Modality.VIDEO, Modality.IMU  # noqa: E741
SPECS = {
    A: TinySpec(A, patch=(5,), grid=(12,), cells=(2,), dim=16, depth=4, heads=2),
    V: TinySpec(V, patch=(4, 2), grid=(2, 3, 2), cells=(2, 1, 1), thumbnail=(2, 1), dim=24, depth=8, heads=2),
    I: TinySpec(I, patch=(6,), grid=(10,), cells=(2,), dim=16, depth=5, heads=2),
}
STAGES, CONTEXT = 2, 12


@pytest.fixture
def backbones() -> dict[Modality, TinyBackbone]:
    torch.manual_seed(0)
    return {m: TinyBackbone(spec).requires_grad_(False) for m, spec in SPECS.items()}


def make_adapter(dim: int, context_dim: int) -> CrossModalAdapter:
    return CrossModalAdapter(
        dim=dim,
        context_dim=context_dim,
        latents=3,
        experts=Experts(dim=dim, bottleneck=4, count=4),
        router=Router(inputs=dim + context_dim, experts=4, top_k=2),
    )


def encoder(backbones: dict[Modality, TinyBackbone], stages: int = STAGES, *, trained: bool = False) -> MMEncoder:
    torch.manual_seed(1)
    made = MMEncoder(backbones=cast(Any, backbones), stages=stages, context_dim=CONTEXT, make_adapter=make_adapter)
    if trained:
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if ".up." in name:
                    parameter.normal_(0, 0.3)
    return made


@torch.no_grad()
def make_batch(backbones: dict[Modality, TinyBackbone], stages: int = STAGES, last: int = 0) -> Batch:
    """Random signals of unequal lengths, each modality run up to its first adapter."""
    torch.manual_seed(2)
    tokens, masks, pooled = {}, {}, {}
    trunk = first_adapters(cast(Any, backbones), stages, last)
    for m, backbone in backbones.items():
        n = torch.tensor([backbone.tokens, 3, 7, backbone.tokens, 4])[:, None]
        masks[m] = torch.arange(backbone.tokens) < n
        h = backbone.stem(torch.randn(5, backbone.tokens, math.prod(backbone.spec.patch)), masks[m])
        for depth, block in enumerate(backbone.blocks):
            entering = cast(Any, block).attend(h, masks[m])
            h = through(cast(Any, block), h, masks[m])
            if depth == trunk[m]:
                tokens[m] = torch.cat([entering, h], 2)
        pooled[m] = backbone.pool(h, masks[m])
    return Batch(tokens, masks, pooled, torch.arange(5), torch.arange(5), tuple("abcde"))


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_untrained_adapters_leave_the_backbones_as_they_are(backbones, stages):
    batch, mm = make_batch(backbones, stages=stages), encoder(backbones, stages)
    encoded = mm(batch)
    for m in backbones:
        assert torch.equal(encoded.pooled[m], batch.pooled[m])


def test_an_empty_context_masks_the_whole_cross_attention_term():
    """Of learned latents nothing gets through either: what is left are the experts on the target alone."""
    torch.manual_seed(0)
    adapter = make_adapter(8, CONTEXT)
    x, y, mask = torch.randn(3, 5, 8), torch.randn(3, 4, CONTEXT), torch.ones(3, 5, dtype=torch.bool)
    with torch.no_grad():
        for up in adapter.experts.up:
            up.normal_()
        empty, gates, chosen = adapter(x, mask, y, torch.zeros(3, 4, dtype=torch.bool))
        assert torch.equal(empty, adapter.experts(x, gates, chosen))
        assert torch.equal(empty, adapter(x, mask, y[:, :0], mask[:, :0])[0])
        assert not torch.allclose(empty, adapter(x, mask, y, mask[:, :4])[0])


def test_an_untrained_adapter_learns_through_its_up_projections(backbones):
    mm = encoder(backbones)
    sum(pooled.pow(2).sum() for pooled in mm(make_batch(backbones)).pooled.values()).backward()
    for name, adapter in mm.adapters.items():
        used = [up.grad for up in adapter.experts.up if up.grad is not None and up.grad.any()]
        assert used, name
    assert all(parameter.grad is None for backbone in backbones.values() for parameter in backbone.parameters())


@pytest.mark.parametrize("depth", [4, 5, 6, 7, 8, 12, 24])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_of_unequal_backbones_end_at_the_same_relative_depth(depth, stages):
    groups = block_groups(depth, stages)
    assert len(groups) == stages
    assert all(len(group) for group in groups)
    assert [i for group in groups for i in group] == list(range(groups[0].start, depth))
    for stage, group in enumerate(groups):
        assert group.stop / depth == pytest.approx((4 - stages + stage + 1) / 4, abs=0.501 / depth)


@pytest.mark.parametrize(("depth", "stages", "first"), [(12, 2, 6), (12, 3, 3), (24, 1, 18), (4, 4, 0)])
def test_adapters_can_sit_at_each_of_the_last_blocks(depth, stages, first):
    groups = block_groups(depth, stages, last=4)
    assert [group[-1] for group in groups] == [depth - 4, depth - 3, depth - 2, depth - 1]
    assert [i for group in groups for i in group] == list(range(first, depth))
    assert first == block_groups(depth, stages)[0].start


def test_a_backbone_too_shallow_for_the_stages_says_how_to_go_on():
    with pytest.raises(PalimpsestError, match="3 blocks has none in some of its last 2 quarters: set .*adapted_blocks"):
        block_groups(3, 2)
    assert block_groups(3, 2, last=1) == [range(2, 3)]


@pytest.mark.parametrize("last", [-1, 3])
def test_adapted_blocks_lie_within_the_stages(backbones, last):
    with pytest.raises(PalimpsestError, match="raise learner.stages"):
        Network(backbones, STAGES, NetworkShape(adapted_blocks=last))


def test_an_untrained_adapter_at_each_block_adds_nothing_and_a_trained_one_speaks(backbones):
    batch, network = make_batch(backbones, last=2), Network(backbones, STAGES, NetworkShape(adapted_blocks=2))
    assert sorted(network.adapters) == sorted(f"{m}-{s}" for m in backbones for s in range(2))
    before = network.encoder(batch).pooled
    for m in backbones:
        assert torch.equal(before[m], batch.pooled[m])
    for name in ("audio-0", "audio-1"):
        with torch.no_grad():
            for up in network.adapters[name].experts.up:
                up.normal_()
        after = network.encoder(batch).pooled
        assert not torch.equal(after[A], before[A])
        before = after


def test_adapters_of_one_stage_read_one_another(backbones):
    """What a modality gives changes the others, in every stage but never the backbone alone."""
    batch, mm = make_batch(backbones), encoder(backbones, trained=True)
    moved = replace(batch, tokens={**batch.tokens, V: batch.tokens[V] + torch.randn_like(batch.tokens[V])})
    assert not torch.allclose(mm(batch).pooled[A], mm(moved).pooled[A], atol=1e-4)


@pytest.mark.parametrize("others", ["in no sample", "in the first sample"])
def test_a_missing_modality_is_the_path_without_it(backbones, others):
    batch, mm = make_batch(backbones), encoder(backbones, trained=True)
    alone = encoder({A: backbones[A]})
    alone.adapters.load_state_dict({k: v for k, v in mm.adapters.state_dict().items() if k.startswith("audio-")})
    single = replace(batch, tokens={A: batch.tokens[A]}, masks={A: batch.masks[A]}, pooled={A: batch.pooled[A]})
    first = (torch.arange(5) == 0) & (others == "in the first sample")
    both = mm(batch.keep({m: first | torch.tensor(m is A) for m in backbones}))
    torch.testing.assert_close(both.pooled[A][1:], alone(single).pooled[A][1:])
    assert torch.equal(both.pooled[V].any(1), first)
    assert torch.equal(both.pooled[I].any(1), first)


def test_what_lies_under_a_mask_changes_nothing(backbones):
    batch, mm = make_batch(backbones), encoder(backbones, trained=True)
    batch = batch.keep({m: torch.arange(5) < (3 if m is V else 5) for m in backbones})
    spoilt = {m: h.masked_fill(~batch.masks[m][..., None], 1e4) for m, h in batch.tokens.items()}
    clean, dirty = mm(batch), mm(replace(batch, tokens=spoilt))
    for m in backbones:
        torch.testing.assert_close(clean.pooled[m], dirty.pooled[m])


def test_nothing_present_gives_no_nan_forwards_or_backwards(backbones):
    batch, mm = make_batch(backbones), encoder(backbones, trained=True)
    some = batch.keep({m: torch.tensor([False, m is A, True, m is V, False]) for m in backbones})
    pooled = mm(some).pooled
    sum(p.pow(2).sum() for p in pooled.values()).backward()
    assert all(p.isfinite().all() for p in pooled.values())
    assert all(p.grad.isfinite().all() for p in mm.parameters() if p.grad is not None)


def test_a_sample_does_not_depend_on_its_batch(backbones):
    batch, mm = make_batch(backbones), encoder(backbones, trained=True)
    one = replace(
        batch,
        tokens={m: h[2:3] for m, h in batch.tokens.items()},
        masks={m: mask[2:3] for m, mask in batch.masks.items()},
        pooled={m: p[2:3] for m, p in batch.pooled.items()},
        labels=batch.labels[2:3],
        groups=batch.groups[2:3],
    )
    for m in backbones:
        torch.testing.assert_close(mm(batch).pooled[m][2:3], mm(one).pooled[m])


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_exactly_k_gates_that_sum_to_one(top_k):
    torch.manual_seed(0)
    router, x = Router(inputs=6, experts=5, top_k=top_k), torch.randn(40, 6)
    gates, chosen = router(x)
    assert gates.shape == chosen.shape == (40, top_k)
    assert (gates > 0).all()
    torch.testing.assert_close(gates.sum(1), torch.ones(40))
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    again = router(x)
    assert torch.equal(gates, again[0])
    assert torch.equal(chosen, again[1])
    assert not torch.equal(gates, router(x, torch.randn(40, 5))[0]) or top_k == 1
    assert not torch.equal(chosen, router(x, 10 * torch.randn(40, 5))[1])


def test_gates_of_a_whole_network_are_deterministic_in_evaluation(backbones):
    batch, mm = make_batch(backbones), encoder(backbones, trained=True)
    one, other = mm(batch), mm(batch)
    for name, (gates, chosen) in one.routing.items():
        assert torch.equal(gates, other.routing[name][0])
        assert torch.equal(chosen, other.routing[name][1])


def test_gate_use_worked_out_by_hand(backbones):
    network, batch = Network(backbones, 1, NetworkShape(context_dim=CONTEXT)), make_batch(backbones, stages=1)
    network.head.grow(1)
    batch = batch.keep({m: torch.tensor([True, True, True, m is A, m is A]) for m in backbones})
    output = network(batch)
    del output.routing["imu-0"]
    gates = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.9, 0.1]])
    chosen = torch.tensor([[0, 1], [0, 1], [3, 0], [2, 3], [2, 3]])
    output.routing |= {"audio-0": (gates[:3].repeat(2, 1)[:5], chosen[:3].repeat(2, 1)[:5])}
    output.routing |= {"video-0": (gates, chosen)}  # the last two samples lack the video
    use = gate_use(network, [batch], [output])
    assert use["gate_mass"].keys() == use["gate_entropy"].keys() == {"audio-0", "video-0"}
    assert use["gate_mass"]["video-0"] == pytest.approx([2 / 3, 0.5 / 3, 0, 0.5 / 3])
    assert use["gate_mass"]["audio-0"] == pytest.approx([3.5 / 5, 1 / 5, 0, 0.5 / 5])
    assert use["gate_entropy"] == pytest.approx({"video-0": 2 / 3 * np.log(2), "audio-0": 3 / 5 * np.log(2)})


def test_a_frozen_expert_never_moves_and_can_still_be_chosen():
    torch.manual_seed(0)
    adapter = make_adapter(8, CONTEXT)
    x, y = torch.randn(6, 5, 8), torch.randn(6, 4, CONTEXT)
    x_mask, y_mask = torch.ones(6, 5, dtype=torch.bool), torch.ones(6, 4, dtype=torch.bool)
    with torch.no_grad():
        for up in adapter.experts.up:
            up.normal_()
    adapter.experts.freeze([1])
    before = [p.detach().clone() for p in (adapter.experts.down[1], adapter.experts.up[1])]
    assert adapter.experts.trainable == [0, 2, 3]
    learning = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.05, weight_decay=0.5)
    other = adapter.experts.up[0].detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        adapter(x, x_mask, y, y_mask, torch.randn(6, 4))[0].pow(2).sum().backward()
        optimizer.step()
    assert torch.equal(before[0], adapter.experts.down[1])
    assert torch.equal(before[1], adapter.experts.up[1])
    assert not torch.equal(other, adapter.experts.up[0])
    with torch.no_grad():  # a router that prefers the frozen one still gets it
        adapter.router.gate.zero_()
        adapter.router.gate[:, 1] = 1.0
    pooled = torch.ones(6, 8 + CONTEXT)
    assert (adapter.router(pooled)[1] == 1).any(1).all()


def test_growth_keeps_what_was_there(backbones):
    torch.manual_seed(3)
    network, batch = Network(backbones, STAGES, NetworkShape(dim=8, fused_dim=10, context_dim=CONTEXT)), None
    network.head.grow(3)
    batch = make_batch(backbones)
    adapter = next(iter(network.adapters.values()))
    gate, head, down = (p.detach().clone() for p in (adapter.router.gate, network.head.weight, adapter.experts.down[2]))
    logits = network(batch).logits
    network.head.grow(5)
    assert torch.equal(network.head.weight[:3], head)
    torch.testing.assert_close(network(batch).logits[:, :3], logits)
    for one in network.adapters.values():
        one.experts.grow(2)
        one.router.grow(2)
    assert adapter.router.gate.shape[1] == len(adapter.experts) == 6
    assert torch.equal(adapter.router.gate[:, :4], gate)
    assert torch.equal(adapter.experts.down[2], down)
    noise = router_noise(network, len(batch), torch.Generator().manual_seed(0))
    assert noise.shape == (len(batch), 6)
    assert network(batch, noise).logits.isfinite().all()


def test_a_network_comes_back_with_its_growth_and_its_frozen_experts(backbones):
    shape = NetworkShape(dim=8, fused_dim=10, context_dim=CONTEXT)
    torch.manual_seed(3)
    network = Network(backbones, STAGES, shape)
    network.head.grow(4)
    adapter = network.adapters["audio-0"]
    adapter.experts.freeze([2])
    adapter.experts.grow(1)
    adapter.router.grow(1)
    torch.manual_seed(4)
    other = Network(backbones, STAGES, shape)
    other.take(network.give())
    assert other.structure() == network.structure()
    batch = make_batch(backbones)
    assert torch.equal(other(batch).logits, network(batch).logits)
    assert not other.adapters["audio-0"].experts.down[2].requires_grad


def test_a_teacher_shares_the_backbones_and_learns_nothing(backbones):
    network = Network(backbones, STAGES, NetworkShape(dim=8, fused_dim=10, context_dim=CONTEXT))
    network.head.grow(2)
    teacher = network.frozen_copy()
    assert teacher.encoder.backbones[A] is backbones[A]
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        network.head.weight += 1
    assert not torch.equal(network.head.weight, teacher.head.weight)


def test_a_cosine_head_looks_at_directions_only():
    torch.manual_seed(0)
    head, x = CosineHead(dim=6, scale=4.0), torch.randn(3, 6)
    head.grow(2)
    torch.testing.assert_close(head(x), head(7 * x))
    torch.testing.assert_close(head(head.weight.detach())[0, 0], torch.tensor(4.0))


def looped(experts: Experts, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    """The gated sum written down: sample by sample, expert by expert."""
    rows = []
    for b in range(len(x)):
        total = torch.zeros_like(x[b])
        for k in range(chosen.shape[1]):
            e = int(chosen[b, k])
            total = total + gates[b, k] * (F.relu(experts.norm(x[b]) @ experts.down[e]) @ experts.up[e])
        rows.append(total)
    return torch.stack(rows)


def test_fused_experts_have_the_gradients_of_finite_differences():
    torch.manual_seed(0)
    experts = Experts(dim=5, bottleneck=3, count=4).double()
    chosen = torch.tensor([[0, 1], [3, 1], [1, 0]])
    parts = [torch.randn(*p.shape, dtype=torch.float64, requires_grad=True) for p in experts.parameters()]
    names = [name for name, _ in experts.named_parameters()]

    def forward(x: Tensor, gates: Tensor, *parts: Tensor) -> Any:
        return torch.func.functional_call(experts, dict(zip(names, parts, strict=True)), (x, gates, chosen))

    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, gates, *parts))


def test_fused_experts_equal_a_loop_with_their_gradients():
    torch.manual_seed(0)
    experts = Experts(dim=7, bottleneck=3, count=5).double()
    with torch.no_grad():
        for up in experts.up:
            up.normal_()
    x = torch.randn(4, 6, 7, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[0, 1], [3, 1], [4, 0], [1, 3]])
    target = torch.randn(4, 6, 7, dtype=torch.float64)
    inputs = [x, raw, *experts.down, *experts.up]
    found = []
    for forward in (experts, lambda *args: looped(experts, *args)):
        out = forward(x, raw.softmax(1), chosen)
        found.append([out, *torch.autograd.grad((out * target).sum(), inputs, allow_unused=True)])
    for fused, loop in zip(*found, strict=True):
        torch.testing.assert_close(fused, torch.zeros_like(fused) if loop is None else loop)
    assert not found[0][1 + 2 + 2].any()  # expert 2 was never chosen
