"""Train a head (or everything) as tutorials write it: plain PyTorch and torchvision, nothing else."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import models
from benchmarks.variants.arguments import held_out, middle_rate, read_options, tell


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)
    device = torch.device(options.device)

    transform = transforms.Compose(
        [
            transforms.Resize(options.image_size),
            transforms.CenterCrop(options.image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    train_data = datasets.ImageFolder(options.data / "train", transform)
    test_data = datasets.ImageFolder(held_out(options.data), transform)
    train_loader = DataLoader(train_data, options.batch_size, shuffle=True, num_workers=options.workers)
    test_loader = DataLoader(test_data, options.batch_size, num_workers=options.workers)

    model = models.load(options.backbone, options.weights, options.image_size)
    if options.train == "head":
        for parameter in model.parameters():
            parameter.requires_grad = False
    head = models.new_head(
        model, len(train_data.classes)
    )  # model.fc = nn.Linear(512, classes), for any model
    model = model.to(device)

    trained = head.parameters() if options.train == "head" else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=options.lr or 0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    stamps, epoch_seconds = [], []
    for epoch in range(options.epochs):
        started = time.perf_counter()
        model.train()
        running_loss = 0.0
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * len(labels)
            stamps.append(time.perf_counter())
        epoch_seconds.append(time.perf_counter() - started)
        print(f"epoch {epoch + 1}: loss {running_loss / len(train_data):.4f}")

    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            predicted = model(images.to(device)).argmax(dim=1).cpu()
            correct += int((predicted == labels).sum())

    tell(
        train_images=len(train_data),
        test_images=len(test_data),
        accuracy=correct / len(test_data),
        epoch_seconds=epoch_seconds,
        images_per_second=middle_rate(stamps, options.batch_size),
    )


if __name__ == "__main__":
    main()
