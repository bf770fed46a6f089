"""A head that a solver fits is the optimum that scikit-learn finds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import transferkit as tk
from transferkit.errors import ArgumentError

QUIET = {"progress": False, "precision": "fp32"}
SOLVED = tk.Phase(train="head", solver="lbfgs")


def reference(model, part, c):
    """Features, and what scikit-learn's optimum for the chosen regularisation says of them."""
    features = tk.extract_features(model, part, device="cpu", precision="fp32")
    x = features.x.astype(np.float64)
    deviation = x.std(axis=0)
    scaled = (x - x.mean(axis=0)) / np.sqrt(deviation * deviation.mean())
    fitted = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(scaled, features.y)
    return x, fitted.predict_proba(scaled)


def test_the_head_is_the_optimum(tiny_model, tiny_part, device):
    model, part = tiny_model(3), tiny_part(60, classes=3)
    history = tk.Trainer(model, recipe=SOLVED, device=device, **QUIET).fit(part)
    x, expected = reference(tiny_model(3), part, history[0]["c"])
    with torch.no_grad():
        probabilities = model.fc.cpu()(torch.from_numpy(x).float()).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_one_row_and_no_epoch(tiny_model, tiny_part, tmp_path):
    part, val = tiny_part(40), tiny_part(20, seed=1, name="val")
    model, run = tiny_model(), tmp_path / "run"
    history = tk.Trainer(model, recipe=SOLVED, run_dir=run, **QUIET).fit(part, val)
    (row,) = history
    assert row["epoch"] == row["epochs"] == 0
    assert row["c"] > 0
    assert row["iterations"] >= 1
    assert row["lr"] is None
    assert row["best"]
    report = tk.evaluate(model, val, device="cpu", precision="fp32")
    assert row["val_accuracy"] == report.accuracy
    assert row["val_loss"] == pytest.approx(report.log_loss, rel=1e-4)
    assert "C" in str(history).splitlines()[0]
    assert json.loads((run / "history.jsonl").read_text()) == row
    config = json.loads((run / "config.json").read_text())
    assert "(66 parameters, L-BFGS) on stored outputs" in config["decisions"][0]


def test_epochs_are_shared_among_the_phases_that_have_any(tiny_model, tiny_part):
    phases = [SOLVED, tk.Phase(train="all", epochs=2), tk.Phase(train="head", epochs=2)]
    history = tk.Trainer(tiny_model(), recipe=phases, **QUIET).fit(tiny_part(), epochs=6)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["phase"] for row in history] == [0, 1, 1, 1, 2, 2, 2]


def test_epochs_that_nothing_uses_are_told(tiny_model, tiny_part):
    with pytest.warns(UserWarning, match=r"^epochs=5 is not used: no phase trains by steps\.$"):
        tk.Trainer(tiny_model(), recipe=SOLVED, **QUIET).fit(tiny_part(), epochs=5)


def test_fine_tuning_goes_on_from_the_fitted_head(tiny_model, tiny_part):
    part = tiny_part(40)
    alone, followed = tiny_model(), tiny_model()
    tk.Trainer(alone, recipe=SOLVED, **QUIET).fit(part)
    still = tk.Phase(train="all", epochs=1, optimizer="sgd", lr=1e-12, weight_decay=0.0)
    tk.Trainer(followed, recipe=[SOLVED, still], **QUIET).fit(part)
    torch.testing.assert_close(alone.fc.weight, followed.fc.weight)


def test_balanced_weights_raise_the_score_of_the_rare_class(tiny_model):
    generator = np.random.default_rng(0)
    targets = np.array([0] * 90 + [1] * 10)
    images = generator.normal(120, 40, (100, 8, 8, 3))
    images[..., 0] += (targets * 8)[:, None, None]
    part = tk.Part(images.clip(0, 255).astype(np.uint8), targets, ["often", "rare"])
    shares = {}
    for weights in (None, "balanced"):
        model = tiny_model()
        tk.Trainer(model, recipe=tk.Phase(train="head", solver="lbfgs", class_weights=weights), **QUIET).fit(
            part
        )
        report = tk.evaluate(model, part, precision="fp32")
        shares[weights] = float(report.probabilities[:, 1].mean())
    assert shares["balanced"] > shares[None] + 0.1


class Watch(tk.Callback):
    def __init__(self):
        self.notes = []

    def phase_start(self, number, phase, note):
        self.notes.append(note)


@pytest.mark.parametrize(("head", "dropout"), [("mlp", 0.0), ("linear", 0.5)])
def test_another_head_trains_by_steps_and_that_is_said(head, dropout, tiny_model, tiny_part):
    model, watch = tiny_model(), Watch()
    tk.replace_head(model, 2, head=head, dropout=dropout)
    phase = tk.Phase(train="head", solver="lbfgs", epochs=2)
    history = tk.Trainer(model, recipe=phase, callbacks=[watch], **QUIET).fit(tiny_part())
    assert [row["epoch"] for row in history] == [1, 2]
    assert watch.notes[0].endswith("; by steps, because the head is not a single linear layer with a bias")


def test_something_after_the_head_makes_it_train_by_steps(tiny_part, tiny_model):
    class Halved(type(tiny_model())):
        def forward(self, images):
            return super().forward(images) / 2

    model, watch = Halved(2), Watch()
    tk.attach_spec(model, head="fc", preprocessing=tk.Preprocessing(size=8))
    phase = tk.Phase(train="head", solver="lbfgs", epochs=1)
    history = tk.Trainer(model, recipe=phase, callbacks=[watch], **QUIET).fit(tiny_part())
    assert history[0]["epoch"] == 1
    assert watch.notes[0].endswith("; by steps, because dropout or another layer trains with the head")


def test_views_of_an_image_count_as_samples(tiny_model, tiny_part):
    part = tiny_part(30)
    phase = tk.Phase(train="head", solver="lbfgs", views=3, augmentation="light")
    model = tiny_model()
    (row,) = tk.Trainer(model, recipe=phase, **QUIET).fit(part)
    assert row["c"] > 0
    plain = tiny_model()
    tk.Trainer(plain, recipe=SOLVED, **QUIET).fit(part)
    assert not torch.allclose(model.fc.weight, plain.fc.weight)


def test_only_a_head_can_be_solved():
    with pytest.raises(
        ArgumentError, match=r"^The 'solver' parameter of Phase must be 'sgd' unless the head alone"
    ):
        tk.Phase(train="all", solver="lbfgs")
    with pytest.raises(ArgumentError, match=r"must be one of 'sgd', 'lbfgs'"):
        tk.Phase(train="head", solver="newton")
    assert tk.Phase.from_dict(SOLVED.to_dict()) == SOLVED


def test_the_seed_changes_nothing_where_a_validation_part_chooses(tiny_model, tiny_part):
    heads = []
    for seed in (0, 1):
        model = tiny_model()
        trainer = tk.Trainer(model, recipe=SOLVED, seed=seed, **QUIET)
        trainer.fit(tiny_part(30), tiny_part(20, seed=1, name="val"))
        assert isinstance(model.fc, nn.Linear)
        heads.append(model.fc.weight.detach().clone())
    assert torch.equal(*heads)
