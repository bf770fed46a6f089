"""Measure the device's matrix peak, and count the operations of models."""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks import measure, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", default="", help="separated by commas")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--side", type=int, help="of the matrices; one that is large where left out")
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peak = {
        name: measure.matrix_peak(options.device, dtype, side=options.side) for name, dtype in types.items()
    }
    counts = {}
    for backbone in filter(None, options.backbones.split(",")):
        counts[backbone] = measure.operations(models.make(backbone, options.image_size), options.image_size)
    print(json.dumps({"peak": peak, "operations_per_image": counts, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
