"""Training steps through a compiled module: which batches take it, and what happens where it fails."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

import transferkit as tk
from transferkit.runtime import Execution, why_not_compile
from transferkit.training.compiled_steps import CompiledSteps, compiles_steps, released_at_the_end

CUDA = Execution("cuda:0", "bf16", channels_last=True)
PREFIX = "Training runs uncompiled, and so more slowly than it could: "


class Compiler:
    """Stands for ``torch.compile``: what it returns notes the size of each batch and runs the module."""

    def __init__(self, fails=()):
        self.fails, self.options, self.sizes = list(fails), [], []

    def __call__(self, module, **options):
        self.options.append(options)

        def compiled(inputs):
            self.sizes.append(len(inputs))
            if self.fails:
                raise self.fails.pop(0)
            return module(inputs)

        return compiled


@pytest.fixture
def compiler(monkeypatch):
    made = Compiler()
    monkeypatch.setattr(torch, "compile", made)
    return made


def through(steps, *sizes):
    return [len(steps(torch.zeros(size, 4))) for size in sizes]


def test_batches_of_the_given_size_are_compiled_and_others_are_not(compiler):
    steps = CompiledSteps(nn.Linear(4, 2), 8, graphs=True)
    assert through(steps, 3, 8, 8, 9, 8, 1) == [3, 8, 8, 9, 8, 1]
    assert compiler.sizes == [8, 8, 8]


def test_where_no_size_is_given_it_is_that_of_the_first_batch(compiler):
    steps = CompiledSteps(nn.Linear(4, 2), None, graphs=True)
    assert through(steps, 8, 9, 8, 3) == [8, 9, 8, 3]
    assert compiler.sizes == [8, 8]


def test_it_is_compiled_once_for_one_shape_and_as_a_graph_where_that_may_be(compiler):
    module = nn.Linear(4, 2)
    CompiledSteps(module, None, graphs=True)
    CompiledSteps(module, None, graphs=False)
    assert compiler.options == [
        {"dynamic": False, "mode": "reduce-overhead"},
        {"dynamic": False, "mode": None},
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no triton\nand more of it"), "no triton"),
        (ValueError(), "ValueError"),
        (AssertionError("x" * 300), "x" * 200),
    ],
)
def test_a_compiler_that_fails_is_told_once_and_the_module_runs(error, reason, compiler):
    compiler.fails = [error]
    module = nn.Linear(4, 2)
    steps = CompiledSteps(module, None, graphs=True)
    inputs = torch.randn(8, 4)
    with pytest.warns(UserWarning, match=f"^{PREFIX}{reason}[.]$") as told:
        output = steps(inputs)
    assert len(told) == 1
    assert torch.equal(output, module(inputs))
    assert torch.equal(steps(inputs), output)
    assert compiler.sizes == [8]


def test_a_compiler_that_fails_in_the_pass_backward_is_told_too(monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no such kernel")

    backend = aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=fails)
    compile_with = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", lambda module, **_: compile_with(module, dynamic=False))
    module = nn.Linear(4, 2)
    steps = CompiledSteps(module, None, graphs=False)
    with pytest.warns(UserWarning, match=PREFIX):
        steps(torch.ones(8, 4)).sum().backward()
    torch.testing.assert_close(module.weight.grad, torch.full((2, 4), 8.0))


def test_memory_that_is_exhausted_is_no_failure_of_the_compiler(compiler):
    compiler.fails = [torch.OutOfMemoryError("CUDA out of memory")]
    with pytest.raises(torch.OutOfMemoryError):
        CompiledSteps(nn.Linear(4, 2), None, graphs=True)(torch.zeros(8, 4))


def test_what_was_compiled_is_given_up_at_the_end(compiler, monkeypatch):
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    with released_at_the_end(None):
        pass
    assert resets == []
    steps = CompiledSteps(nn.Linear(4, 2), None, graphs=True)
    with pytest.raises(KeyboardInterrupt), released_at_the_end(steps):
        raise KeyboardInterrupt
    assert resets == [1]


def test_an_error_of_the_module_is_the_modules_own(compiler):
    steps = CompiledSteps(nn.Linear(4, 2), None, graphs=True)
    with pytest.warns(UserWarning, match=PREFIX), pytest.raises(RuntimeError, match="shapes cannot be"):
        steps(torch.zeros(8, 5))


def test_an_error_of_a_later_batch_is_no_failure_of_the_compiler(compiler):
    steps = CompiledSteps(nn.Linear(4, 2), None, graphs=True)
    steps(torch.zeros(8, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be"):
        steps(torch.zeros(8, 5))
    assert compiler.sizes == [8, 8]


def test_the_module_trains_through_it_and_keeps_its_names(compiler):
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    names = list(module.state_dict())
    twin = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    twin.load_state_dict(module.state_dict())
    inputs = torch.randn(8, 4)
    for forward in (CompiledSteps(module, None, graphs=False), twin):
        F.cross_entropy(forward(inputs), torch.arange(8) % 2).backward()
    assert list(module.state_dict()) == names
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert torch.equal(module[1].running_mean, twin[1].running_mean)


@pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="needs a C++ compiler")
def test_what_a_compiler_really_makes_gives_the_same_outputs_and_gradients():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    steps = CompiledSteps(module, None, graphs=False)
    inputs, targets = torch.randn(8, 4), torch.arange(8) % 2
    wanted = torch.autograd.grad(F.cross_entropy(module(inputs), targets), list(module.parameters()))
    output = steps(inputs)
    F.cross_entropy(output, targets).backward()
    torch.testing.assert_close(output, module(inputs))
    for parameter, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert torch.equal(steps(inputs[:3]), module(inputs[:3]))


@pytest.mark.parametrize("compile", [True, False, "auto"])
def test_on_a_cpu_no_steps_are_compiled(compile):
    execution = Execution("cpu", "bf16", channels_last=True, compile=compile)
    assert not compiles_steps(tk.load_backbone("resnet18", weights=None), execution, 10**9)


def test_on_an_accelerator_they_are_where_it_is_asked_for_or_pays():
    model = tk.load_backbone("resnet18", weights=None).train()
    asked = dataclasses.replace(CUDA, compile=True)
    assert compiles_steps(model, asked, 1)
    assert compiles_steps(model, asked, None)
    assert compiles_steps(nn.Linear(2, 2), asked, None)
    assert not compiles_steps(model, dataclasses.replace(CUDA, compile=False), 10**9)
    # Counted by hand: 3.6 * 10^9 operations, three times for a step, at 2 ms for each 10^12 of them, of
    # which half is left after compiling twice, against 4 s and 0.1 s for each of 41 layers.
    pays = 8.1 / (3.6e9 * 3 / 2 * 0.002 / 1e12)
    assert not compiles_steps(model, CUDA, int(0.95 * pays))
    assert compiles_steps(model, CUDA, int(1.05 * pays))
    assert all(module.training for module in model.modules())


def test_without_what_they_follow_from_they_are_not():
    model = tk.load_backbone("resnet18", weights=None)
    assert not compiles_steps(model, CUDA, None)
    assert not compiles_steps(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), CUDA, 10**12)


class Ready(tk.Callback):
    def phase_ready(self, model, tools):
        self.tools = tools


def trained(tiny_model, tiny_part, monkeypatch=None, **options):
    model, ready = tiny_model(), Ready()
    if monkeypatch is not None:
        monkeypatch.setattr("transferkit.training.run.compiles_steps", lambda *given: True)
    phase = tk.Phase(epochs=2, lr=0.01, augmentation="light", freeze_batch_norm=True, **options)
    trainer = tk.Trainer(
        model, recipe=phase, batch_size=10, precision="bf16", callbacks=[ready], progress=False
    )
    history = trainer.fit(tiny_part(24), tiny_part(8, seed=1, name="val"))
    return model, [(row["train_loss"], row["val_loss"]) for row in history], ready.tools


def test_a_run_sends_its_whole_batches_through_what_was_compiled(
    tiny_model, tiny_part, compiler, monkeypatch
):
    plain, rows, tools = trained(tiny_model, tiny_part)
    assert tools.forward is None
    assert compiler.sizes == []
    model, others, tools = trained(tiny_model, tiny_part, monkeypatch)
    # A compiler folds by itself.
    assert tools.folding is None
    assert compiler.options == [{"dynamic": False, "mode": "reduce-overhead"}]
    assert compiler.sizes == [10, 10] * 2
    assert [loss for row in others for loss in row] == pytest.approx(
        [loss for row in rows for loss in row], abs=2**-8
    )
    assert list(model.state_dict()) == list(plain.state_dict())


def test_gradients_that_are_added_up_outlive_no_graph(tiny_model, tiny_part, compiler, monkeypatch):
    trained(tiny_model, tiny_part, monkeypatch, accumulate=2)
    assert compiler.options == [{"dynamic": False, "mode": None}]


def test_checkpointed_activations_and_stored_outputs_are_not_compiled(tiny_part, compiler, monkeypatch):
    monkeypatch.setattr("transferkit.training.run.compiles_steps", lambda *given: True)
    for phase in (tk.Phase(epochs=1, checkpoint_activations=True), tk.Phase(train="head", epochs=1)):
        model = tk.load_backbone("mini", num_classes=2)
        tk.Trainer(model, recipe=phase, batch_size=8, progress=False).fit(tiny_part(16))
    assert compiler.options == []
