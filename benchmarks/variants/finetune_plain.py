"""Fine-tune everything as tutorials write it: float32, a DataLoader, and the loss read at every step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import measure, models
from benchmarks.variants.step_options import read_options, tell


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)
    device = torch.device(options.device)

    loader: Iterable[Any]
    if options.data is None:
        loader = measure.ReadyBatches(options.batch_size, options.image_size, options.steps, device)
        images, classes = options.batch_size * options.steps, 10
    else:
        transform = transforms.Compose(
            [
                transforms.Resize(options.image_size * 256 // 224),
                transforms.RandomCrop(options.image_size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )
        data = datasets.ImageFolder(options.data / "train", transform)
        loader = DataLoader(data, options.batch_size, shuffle=True, num_workers=options.workers)
        images, classes = len(data), len(data.classes)

    model = models.load(options.backbone, options.weights, options.image_size)
    models.new_head(model, classes)
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    criterion = nn.CrossEntropyLoss()

    epoch_seconds = []
    for _ in range(options.epochs):
        started = time.perf_counter()
        model.train()
        running_loss = 0.0
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * len(labels)
        measure.wait_for(device)
        epoch_seconds.append(time.perf_counter() - started)

    tell(images, epoch_seconds)


if __name__ == "__main__":
    main()
