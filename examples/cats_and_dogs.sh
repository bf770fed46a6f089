#!/usr/bin/env bash
# Cats and dogs from the command line: a frozen backbone, then a learning rate for each part.
#
#     bash examples/cats_and_dogs.sh [PHOTOS OUT [BACKBONE [WEIGHTS [OPTION OF train]...]]]
#
# PHOTOS is a flat folder of cat.0.jpg, dog.0.jpg and so on; the label stands in the file name.
# BACKBONE is resnet34, whose weights are fetched, unless it is given. Without arguments the photos
# that TRANSFERKIT_TEST_DATA names are taken, or pictures that are drawn, with the embedded backbone.
set -euo pipefail

if [[ $# -eq 0 && -n ${TRANSFERKIT_TEST_DATA:-} ]]; then
    set -- "$TRANSFERKIT_TEST_DATA/data/cats_dogs" cats-and-dogs resnet18 \
        "$TRANSFERKIT_TEST_DATA/weights/resnet18_imagenet200_64px.pth" --image-size 64
elif [[ $# -eq 0 ]]; then
    python "$(dirname "$0")/material.py" cats-and-dogs/photos cat dog
    set -- cats-and-dogs/photos cats-and-dogs mini
fi
photos=$1 out=$2 backbone=${3:-resnet34} weights=${4:-default}
common=(--label-from '^(\w+)\.' --backbone "$backbone" --weights "$weights" --quiet "${@:5}")
# The extra tensorboard; `tensorboard --logdir OUT` then shows both runs side by side.
if python -c 'import tensorboard' 2>/dev/null; then
    common+=(--tensorboard)
fi

# Print a command as it would be typed, and run it.
show() {
    printf '\n$'
    for word in "$@"; do
        if [[ $word == *[^A-Za-z0-9_./-]* ]]; then word="'$word'"; fi
        printf ' %s' "$word"
    done
    printf '\n'
    "$@"
}

# The head alone, on features that are computed once.
show transferkit train "$photos" "${common[@]}" --recipe linear-probe --out "$out/frozen"

# Everything: the head at 1e-3, the last stage at 3e-4, each stage before it at half of that.
show transferkit train "$photos" "${common[@]}" --recipe fine-tune \
    --lr 3e-4 --head-lr 1e-3 --layer-decay 0.5 --out "$out/rates"

# Each image with its label and score, and a picture of the first of them.
show transferkit predict "$out/rates" "$photos" --out "$out/result.csv" --grid "$out/predictions.png" --quiet
head -n 4 "$out/result.csv"
