"""Freezing, on generated trees of modules with shared modules and shared parameters."""

from __future__ import annotations

import copy
import io
import pickle
import random
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest
import torch
from example_counts import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from transferkit.errors import SelectorError
from transferkit.freezing import freeze, unfreeze

WIDTH = 3
SEEDS = st.integers(0, 2**32)

LEAVES = (
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.BatchNorm1d(WIDTH),
    lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.PReLU(),
    lambda: nn.Dropout(0.5),
    lambda: nn.ReLU(),
)


class Plan(NamedTuple):
    """What is passed to ``freeze``, and the names that it means."""

    selectors: object
    names: set[str]


def grown(draw: random.Random, depth: int, made: list[nn.Module]) -> nn.Module:
    """Grow a tree in which modules may stand in several places and layers may share a weight."""
    if made and draw.random() < 0.15:
        return draw.choice(made)
    if depth == 0 or draw.random() < 0.4:
        leaf = draw.choice(LEAVES)()
        linear = [each for each in made if isinstance(each, nn.Linear)]
        if isinstance(leaf, nn.Linear) and linear and draw.random() < 0.3:
            leaf.weight = draw.choice(linear).weight
        made.append(leaf)
        return leaf
    node = nn.Sequential()
    for number in range(draw.randint(1, 4)):
        node.add_module(draw.choice(["body", "layer", "block"]) + str(number), grown(draw, depth - 1, made))
    made.append(node)
    return node


def tree(seed: int) -> nn.Module:
    draw = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**31)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        for number in range(draw.randint(1, 4)):
            model.add_module(f"part{number}", grown(draw, 3, []))
        made = list(model.modules())[1:]
        model.add_module("last", draw.choice(made))  # shared with an earlier place
    return model


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def plan_for(model: nn.Module, seed: int) -> Plan:
    """Draw selectors of each kind, with what they mean worked out from their description."""
    draw = random.Random(seed + 1)
    names = names_of(model)
    places = {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}
    chosen, meant = [], set()
    for _ in range(draw.randint(0, 3)):
        kind = draw.choice(["name", "glob", "function"])
        if kind == "name":
            place = draw.choice(sorted(places))
            found = {name for name in names if f"{name}.".startswith(f"{place}.")}
            selector = place
        elif kind == "glob":
            selector = draw.choice(["*.weight", "*.bias", "part?", "part[01]*", "*block*", "last*", "*"])
            found = {
                name
                for name in names
                if any(
                    fnmatchcase(".".join(name.split(".")[:count]), selector)
                    for count in range(1, name.count(".") + 2)
                )
            }
        else:
            wanted = set(draw.sample(names, draw.randint(1, len(names))))
            selector, found = (lambda name, parameter, wanted=wanted: name in wanted), wanted
        if found:
            chosen.append(selector)
            meant |= found
    if not chosen:
        return Plan(None, set())
    return Plan(draw.choice([list, tuple])(chosen) if len(chosen) > 1 else chosen[0], meant)


def trained(model: nn.Module, steps: int = 3, seed: int = 5) -> nn.Module:
    """A user's own loop in train mode, with an optimizer that would decay all there is."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(steps):
            model.train()
            optimizer.zero_grad()
            loss = model(torch.randn(4, WIDTH)).square().mean()
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
    return model


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def fixed_state(model: nn.Module) -> dict[str, bytes]:
    """The frozen parameters, and the buffers of modules whose parameters are all frozen."""
    state = {
        name: bits(each)
        for name, each in model.named_parameters(remove_duplicate=False)
        if not each.requires_grad
    }
    for path, module in model.named_modules(remove_duplicate=False):
        own = list(module.parameters(recurse=False))
        if own and not any(each.requires_grad for each in own):
            state |= {f"{path}.{name}": bits(each) for name, each in module.named_buffers(recurse=False)}
    return state


def plan_state(model: nn.Module) -> list[tuple[str, bool, set[str], dict[str, bool]]]:
    """Everything that a plan changes of a model."""
    return [
        (
            path,
            module.training,
            set(vars(module)),
            {name: each.requires_grad for name, each in module.named_parameters(recurse=False)},
        )
        for path, module in model.named_modules(remove_duplicate=False)
    ]


@examples(60)
@given(SEEDS)
def test_what_is_frozen_is_bitwise_unchanged_after_steps_in_train_mode(seed):
    model = tree(seed)
    plan = plan_for(model, seed)
    assert freeze(model, except_=plan.selectors) is model
    trains = {id(each) for name, each in model.named_parameters(remove_duplicate=False) if name in plan.names}
    for name, each in model.named_parameters(remove_duplicate=False):
        assert each.requires_grad == (id(each) in trains), f"seed {seed}: {name}"
    before = fixed_state(model)
    assert fixed_state(trained(model)) == before, f"seed {seed}"


@examples(40)
@given(SEEDS)
def test_unfreezing_undoes_it_all(seed):
    model = tree(seed).train()
    untouched = copy.deepcopy(model)
    for number in range(3):
        freeze(model, except_=plan_for(model, seed + 10 * number).selectors)
    unfreeze(model)
    assert plan_state(model) == plan_state(untouched), f"seed {seed}"
    first, second = trained(model).state_dict(), trained(untouched).state_dict()
    assert {name: bits(each) for name, each in first.items()} == {
        name: bits(each) for name, each in second.items()
    }, f"seed {seed}"


@examples(40)
@given(SEEDS)
def test_freezing_twice_is_freezing_once_and_the_last_plan_counts(seed):
    model = tree(seed)
    plan, other = plan_for(model, seed), plan_for(model, seed + 7)
    once = plan_state(freeze(copy.deepcopy(model), except_=plan.selectors))
    assert plan_state(freeze(freeze(model, except_=other.selectors), except_=plan.selectors)) == once
    assert plan_state(freeze(model, except_=plan.selectors)) == once, f"seed {seed}"


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@examples(20)
@given(SEEDS)
@pytest.mark.parametrize(
    "way",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_keep_the_plan_and_share_nothing(way, seed):
    model = tree(seed)
    freeze(model, except_=plan_for(model, seed).selectors)
    before = {name: bits(each) for name, each in model.state_dict().items()}
    other = way(model)
    assert plan_state(other) == plan_state(model), f"seed {seed}"
    fixed = fixed_state(other)
    assert fixed_state(trained(other)) == fixed, f"seed {seed}"
    assert {name: bits(each) for name, each in model.state_dict().items()} == before, f"seed {seed}"


@examples(30)
@given(SEEDS, st.text(min_size=1, max_size=8))
def test_a_plan_that_cannot_be_carried_out_changes_nothing(seed, text):
    model = tree(seed)
    freeze(model, except_=plan_for(model, seed).selectors)
    before = plan_state(model)
    nowhere = f"nowhere{text}"  # no name begins so, and no pattern does
    good = names_of(model)[0]
    for call, option in ((freeze, "except_"), (unfreeze, "only")):
        with pytest.raises(SelectorError) as caught:
            call(model, **{option: [good, nowhere]})
        said = str(caught.value)
        assert said.startswith(f"The '{option}' parameter of {call.__name__} must match parameters of ")
        assert plan_state(model) == before, f"seed {seed}"
