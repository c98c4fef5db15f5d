"""Whether generated wafers help is judged by lots that have no children."""

from pathlib import Path

import numpy as np
import pytest

from services.common.dataset import Dataset, DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.errors import FailedPreconditionError
from services.common.store import open_store
from services.generator.domain import ClassRequest, GenerationSpec, VariationOptions, check_against
from services.generator.embedding import WaferEmbedding
from services.generator.production import ClassProduction, Progress
from services.generator.proof import DRAWS, judging_wafers, prove
from services.generator.real_wafers import real_by_class
from services.generator.shards import Shards
from services.generator.simulator import SimulatedClass, simulate

CLASSES = ("Center", "Donut", "Edge-Ring")
TAUGHT, LOT = 5, 5


def wafers(pattern: str, count: int, seed: int) -> list[np.ndarray]:
    return [dies for batch in simulate([SimulatedClass((pattern,), count)], seed=seed) for dies in batch.dies]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Of each class a lot that teaches, six that judge, and a wafer that was generated before."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    with DatasetWriter(store, "d", [DatasetClass(name, name, name) for name in CLASSES]) as writer:
        for name in CLASSES:
            rows = [
                DatasetWafer(
                    f"{name}{number}",
                    dies,
                    name,
                    f"{name}-{number // LOT}",
                    Origin.UPLOADED,
                    split=Split.TRAIN if number < TAUGHT else Split.TEST if number // LOT % 2 else Split.TUNE,
                )
                for number, dies in enumerate(wafers(name, TAUGHT + 30, 1))
            ]
            made = DatasetWafer(f"{name}g", rows[0].dies, name, f"{name}-0", Origin.VARIATION, f"{name}0")
            writer.add([*rows, made])
        writer.finish()
    return open_dataset(store, "d")


@pytest.fixture(scope="module")
def embedding() -> WaferEmbedding:
    return WaferEmbedding()


def test_no_lot_that_teaches_judges(dataset: Dataset) -> None:
    grids, names, lots = judging_wafers(dataset, CLASSES)
    assert len(grids) == len(names) == len(lots) == 30 * len(CLASSES)
    assert not set(lots) & set(dataset.lots(Split.TRAIN))
    assert set(names) == set(CLASSES)
    assert not {dies.tobytes() for dies in grids} & {dies.tobytes() for dies in dataset.grids(Split.TRAIN)}


def test_children_inherit_lots_that_teach(dataset: Dataset, tmp_path: Path) -> None:
    class Silent:
        def progressed(self, progress: Progress) -> None: ...
        def previewed(self, grids: object) -> None: ...

    parents = real_by_class(dataset, Split.TRAIN)["Donut"]
    production = ClassProduction(
        ClassRequest("Donut", 40, VariationOptions()),
        DatasetClass("Donut", "Donut", "Donut"),
        parents,
        seed=1,
        shards=Shards(open_store(str(tmp_path)), {}),
        checkpoint=tmp_path / "unused",
        listener=Silent(),
    )
    of_children = {lot for chunk in production.wafers() for lot in np.array(chunk.lots)[chunk.parents]}
    assert of_children == {parent.lot for parent in parents}
    assert not of_children & set(judging_wafers(dataset, CLASSES)[2])


def test_wafers_of_the_wrong_class_do_harm_and_the_interval_says_so(
    dataset: Dataset, embedding: WaferEmbedding
) -> None:
    draws: list[int] = []
    wrong = {"Center": embedding.embed(wafers("Donut", 60, 2)), "Donut": embedding.embed(wafers("Center", 60, 2))}
    proof = prove(dataset, embedding, wrong, 0, draws.append)
    assert draws == list(range(1, DRAWS + 1))
    assert proof.difference < 0
    assert proof.high < 0
    assert proof.difference == pytest.approx(proof.with_generated - proof.without)
    assert (proof.judged_wafers, proof.judged_lots) == (90, 18)


def test_copies_change_little_and_are_not_said_to_help(dataset: Dataset, embedding: WaferEmbedding) -> None:
    copies = {name: embedding.embed(wafers(name, TAUGHT, 1)) for name in CLASSES}
    proof = prove(dataset, embedding, copies, 0)
    assert proof.low <= 0 <= proof.high
    assert abs(proof.difference) < 0.05
    assert prove(dataset, embedding, copies, 0) == proof


def test_a_proof_without_judges_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with DatasetWriter(store, "d", [DatasetClass(name, name, name) for name in CLASSES]) as writer:
        writer.add([DatasetWafer(name, wafers(name, 1, 1)[0], name, name, Origin.UPLOADED) for name in CLASSES])
        writer.finish()
    manifest = open_dataset(store, "d").manifest
    request = ClassRequest("Center", 5, VariationOptions())
    check_against(GenerationSpec("d", (request,)), manifest)
    with pytest.raises(FailedPreconditionError, match="lots set aside"):
        check_against(GenerationSpec("d", (request,), prove=True), manifest)
