"""Fine-tune in a loop of your own: transferkit adapts the model, torch trains it.

    python examples/plain_loop.py DATA --backbone resnet18 --weights FILE --image-size 64

``DATA`` is a folder that ``transferkit.load_dataset`` understands, or a name such as ``digits``.
First the head alone trains on a frozen backbone; then everything does, at a lower rate, with
the stages nearer to the images slower still.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import transferkit as tk


def collate(preprocessing: tk.Preprocessing) -> Callable:
    """Stack preprocessed images and their class indices."""

    def stack(samples: list) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = zip(*samples, strict=True)
        return torch.stack([preprocessing(image) for image in images]), torch.tensor(targets)

    return stack


def train(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    model.train()  # what is frozen stays in inference mode all the same
    for epoch in range(epochs):
        total = 0.0
        for images, targets in batches:
            loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(targets)
        print(f"  epoch {epoch + 1}: loss {total / len(batches.dataset):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--label-from")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--epochs", type=int, default=5, help="of each of the two phases")
    options = parser.parse_args()

    torch.manual_seed(0)
    splits = tk.load_dataset(options.data, label_from=options.label_from, shots=options.shots)
    model = tk.load_backbone(options.backbone, weights=options.weights, image_size=options.image_size)
    tk.replace_head(model, len(splits.classes), classes=splits.classes)
    stack = collate(tk.spec_of(model).preprocessing)
    batches = DataLoader(splits.train, batch_size=32, shuffle=True, collate_fn=stack)

    print("the head alone")
    tk.freeze(model, except_="head")
    print(tk.summary(model))
    optimizer = torch.optim.AdamW(tk.parameter_groups(model, lr=3e-3))
    train(model, batches, optimizer, options.epochs)
    held_out = splits.val if splits.test is None else splits.test
    print(f"accuracy {tk.evaluate(model, held_out).accuracy:.1%}")

    print("everything")
    tk.unfreeze(model)
    groups = tk.parameter_groups(model, lr=1e-4, head_lr=1e-3, layer_decay=0.7, weight_decay=0.01)
    train(model, batches, torch.optim.AdamW(groups), options.epochs)
    print(tk.evaluate(model, held_out))


if __name__ == "__main__":
    main()
