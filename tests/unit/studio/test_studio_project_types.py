"""Projects with several patterns per wafer, and projects that only normal wafers teach."""

from __future__ import annotations

from pathlib import Path

import pytest
from inference import grpc_service_pb2
from teachwafer.generator.v1 import generator_pb2
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.trainer.v1 import trainer_pb2

from gateway.studio import Studio
from gateway.values import (
    Board,
    GenerationRequest,
    Level,
    Method,
    Project,
    ProjectState,
    Task,
    UploadFile,
)
from services.common.dataset import DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.errors import FailedPreconditionError, InvalidArgumentError
from services.common.store import open_store
from services.common.wafer_map import WaferIdentity, WaferMap
from tests.unit.studio import messages
from tests.unit.studio.fake_services import FakeServices
from tests.unit.studio.messages import G, T
from tests.unit.studio.wafer_makers import die_list, grid, wafers, zipped


@pytest.fixture
async def several(studio: Studio) -> Project:
    """12 wafers each of Center, Scratch, both, and none, in lots of four."""
    made = await studio.projects.create("Mixed", Task.SEVERAL, classes=["Center", "Scratch"])
    await _upload(studio, made, {"Center": 0, "Scratch": 100, "Center+Scratch": 200, "none": 300}, 12)
    return made


async def _upload(studio: Studio, project: Project, first: dict[str, int], count: int) -> None:
    entries = {
        f"{label}/{lot}.csv": die_list([grid(start + lot * 4 + each) for each in range(4)], f"{label[:6]}-{lot}")
        for label, start in first.items()
        for lot in range(count // 4)
    }
    preview = await studio.uploads.stage(project.project_id, [UploadFile("lots.zip", zipped(entries))])
    await studio.uploads.commit(preview.import_id)


def _counts(board: Board) -> dict[str, int]:
    return {card.wafer_class.name: card.counts.wafers for card in board.cards}


async def test_labels_joined_by_plus_give_a_class_and_further_ones(studio: Studio) -> None:
    project = await studio.projects.create("Mixed", Task.SEVERAL, classes=["Center"])
    entries = {
        "center + Donut/1.csv": die_list([grid(1)]),
        "Donut+center/2.csv": die_list([grid(2)]),
        "none+Scratch/3.csv": die_list([grid(3)]),
        "none/4.csv": die_list([grid(4)]),
    }
    preview = await studio.uploads.stage(project.project_id, [UploadFile("lots.zip", zipped(entries))])
    groups = {each.label: (each.class_name, each.also) for each in preview.labels}
    assert groups == {
        "center + Donut": ("Center", ("Donut",)),
        "Donut+center": ("Donut", ("Center",)),
        "none+Scratch": ("Scratch", ()),
        "none": ("none", ()),
    }
    done = await studio.uploads.commit(preview.import_id)
    assert (done.count, len(done.new_classes)) == (4, 2)
    board = await studio.projects.board(project.project_id)
    assert _counts(board) == {"none": 1, "Center": 2, "Donut": 2, "Scratch": 1}
    assert board.counts.wafers == 4
    assert done.change is not None
    await studio.history.undo(done.change.change_id)
    assert _counts(await studio.projects.board(project.project_id)) == {"none": 0, "Center": 0}


async def test_in_other_projects_such_a_label_is_a_name_like_any_other(studio: Studio) -> None:
    project = await studio.projects.create("One")
    files = [UploadFile("lots.zip", zipped({"Center+Scratch/1.csv": die_list([grid(1)])}))]
    preview = await studio.uploads.stage(project.project_id, files)
    await studio.uploads.commit(preview.import_id)
    assert _counts(await studio.projects.board(project.project_id)) == {"none": 0, "Center+Scratch": 1}


async def test_all_into_one_class_leaves_the_labels_aside(studio: Studio) -> None:
    project = await studio.projects.create("Mixed", Task.SEVERAL, classes=["Center"])
    _, center = await studio.classes.list(project.project_id)
    files = [UploadFile("lots.zip", zipped({"Donut+Scratch/1.csv": die_list([grid(1)])}))]
    preview = await studio.uploads.stage(project.project_id, files)
    await studio.uploads.commit(preview.import_id, class_id=center.class_id)
    assert _counts(await studio.projects.board(project.project_id)) == {"none": 0, "Center": 1}


async def test_a_frozen_version_holds_every_pattern_and_changes_with_them(
    studio: Studio, several: Project, home: Path
) -> None:
    none, center, scratch = await studio.classes.list(several.project_id)
    frozen = await studio.datasets.freeze(several.project_id)
    store = open_store(f"{(home / 'store').as_uri()}")
    found = open_dataset(store, frozen.dataset_id)
    both = [each for each in found.iter_wafers() if each.also]
    assert {each.class_ids for each in both} == {(center.class_id, scratch.class_id)}
    assert len(both) == 12
    assert {each.split for each in both} == set(Split)
    assert sum(found.manifest.counts[scratch.class_id].values()) == 24
    assert (await studio.datasets.freeze(several.project_id)).dataset_id == frozen.dataset_id

    page = await studio.wafers.page(several.project_id, center.class_id)
    plain = next(each for each in page.wafers if not each.also)
    change = await studio.wafers.show([plain.wafer_id], scratch.class_id, True)
    again = await studio.datasets.freeze(several.project_id)
    assert again.dataset_id != frozen.dataset_id
    await studio.history.undo(change.change_id)
    assert (await studio.datasets.freeze(several.project_id)).dataset_id == frozen.dataset_id

    # A wafer whose own class is left out still teaches the other one.
    await studio.classes.enable(center.class_id, False)
    without = open_dataset(store, (await studio.datasets.freeze(several.project_id)).dataset_id)
    assert {each.class_ids for each in without.iter_wafers()} == {(none.class_id,), (scratch.class_id,)}
    assert without.manifest.wafers == 36


async def test_a_file_and_a_copy_of_a_project_keep_its_patterns(
    studio: Studio, several: Project, tmp_path: Path
) -> None:
    file = await studio.projects.export_file(several.project_id, tmp_path / "mixed.zip")
    for made in (await studio.projects.open_file(file), await studio.projects.duplicate(several.project_id, "Copy")):
        assert made.task is Task.SEVERAL
        board = await studio.projects.board(made.project_id)
        assert _counts(board) == {"none": 12, "Center": 24, "Scratch": 24}
        assert board.counts.wafers == 48


async def test_training_says_what_the_model_shall_tell(
    studio: Studio, services: FakeServices, several: Project
) -> None:
    services.answer("CreateTrainingJob", messages.training("datasetVersions/d"))
    await studio.training.start(several.project_id)
    (request,) = services.requests["CreateTrainingJob"]
    assert request.training_job.config.task == trainer_pb2.TrainingConfig.TASK_SEVERAL_PATTERNS


async def test_a_variation_shows_what_its_parent_shows(
    studio: Studio, services: FakeServices, several: Project, home: Path
) -> None:
    _, center, scratch = await studio.classes.list(several.project_id)
    services.answer("CreateGenerationJob", messages.generation("datasetVersions/d"))
    run = await studio.generation.start(several.project_id, [GenerationRequest(center.class_id, 4)])
    base = services.requests["CreateGenerationJob"][0].generation_job.dataset_version
    store = open_store(f"{(home / 'store').as_uri()}")
    frozen = open_dataset(store, base.removeprefix("datasetVersions/"))
    parents = [each for each in frozen.iter_wafers(Split.TRAIN) if each.class_id == center.class_id]
    with DatasetWriter(store, "made", frozen.classes) as writer:
        writer.add(
            DatasetWafer(f"g{i}", grid(9000 + i), center.class_id, each.lot, Origin.VARIATION, parent_id=each.wafer_id)
            for i, each in enumerate(parents)
        )
        writer.finish()
    result = generator_pb2.GenerationResult(dataset_version="datasetVersions/made")
    services.always("GetGenerationJob", lambda _: messages.generation(base, G.STATE_SUCCEEDED, result=result))
    await studio.generation.accept(run.run_id)
    page = await studio.wafers.page(several.project_id, center.class_id, generated=True)
    assert sum(each.also == (scratch.class_id,) for each in page.wafers) == sum(bool(each.also) for each in parents) > 0
    assert sum(not each.also for each in page.wafers) == sum(not each.also for each in parents) > 0
    request = GenerationRequest(center.class_id, 4, Method.LEARNED)
    with pytest.raises(FailedPreconditionError) as refused:
        await studio.generation.start(several.project_id, [request])
    assert refused.value.reason == "LEARNED_ONE_PATTERN"


async def test_answers_name_each_pattern(studio: Studio, services: FakeServices, several: Project) -> None:
    _, center, scratch = await studio.classes.list(several.project_id)
    shown = [
        predictor_pb2.ClassProbability(class_id=each.class_id, display_name="taught", probability=chance)
        for each, chance in ((scratch, 0.97), (center, 0.8))
    ]
    services.answer(
        "Classify",
        predictor_pb2.ClassifyResponse(
            version=1,
            answers=[
                messages.wafer_answer(scratch.class_id, 0.77, patterns=shown),
                messages.wafer_answer(center.class_id, 0.9),
            ],
        ),
    )
    both, clean = (await studio.answers.classify(several.model_id, wafers(2))).answers
    assert both.task is Task.SEVERAL
    assert [(each.name, each.colour) for each in both.patterns] == [
        ("Scratch", scratch.colour),
        ("Center", center.colour),
    ]
    assert clean.patterns == ()


async def test_only_normal_wafers_are_needed_and_the_others_say_that_they_measure(studio: Studio) -> None:
    project = await studio.projects.create("Normal", Task.NORMAL, classes=["Scratch", "Donut"])
    none, scratch, _ = await studio.classes.list(project.project_id)
    board = await studio.projects.board(project.project_id)
    assert (board.training.reason, board.training.params["needed"]) == ("few_normal", 20)
    assert [card.health[0].key for card in board.cards] == ["no_wafers", "optional", "optional"]

    await studio.wafers.add(none.class_id, wafers(19, lots=5))
    await studio.wafers.add(scratch.class_id, wafers(3, first=500))
    board = await studio.projects.board(project.project_id)
    assert not board.training.open
    assert [card.health[0].key for card in board.cards] == ["few_wafers", "only_measures", "optional"]
    assert board.cards[1].health[0].level is Level.ADVICE
    with pytest.raises(FailedPreconditionError) as refused:
        await studio.training.start(project.project_id)
    assert refused.value.reason == "FEW_NORMAL"

    await studio.wafers.add(none.class_id, wafers(1, first=900))
    board = await studio.projects.board(project.project_id)
    assert (board.training.open, board.state) == (True, ProjectState.READY)
    await studio.classes.enable(none.class_id, False)
    assert (await studio.projects.board(project.project_id)).training.reason == "normal_disabled"


async def test_only_normal_wafers_teach_and_the_others_measure(
    studio: Studio, services: FakeServices, home: Path
) -> None:
    project = await studio.projects.create("Normal", Task.NORMAL, classes=["Scratch"])
    none, scratch = await studio.classes.list(project.project_id)
    await studio.wafers.add(none.class_id, wafers(60, lots=20))
    # Lots of their own, none, and lots whose normal wafers stand somewhere.
    apart = [WaferMap(grid(1000 + i), WaferIdentity(lot=f"S{i // 2}" if i < 12 else "")) for i in range(20)]
    await studio.wafers.add(scratch.class_id, [*apart, *wafers(20, first=2000, lots=20)])
    services.answer("CreateTrainingJob", messages.training("datasetVersions/d"))
    await studio.training.start(project.project_id)
    (request,) = services.requests["CreateTrainingJob"]
    assert request.training_job.config.task == trainer_pb2.TrainingConfig.TASK_ONLY_NORMAL
    dataset = request.training_job.dataset_version.removeprefix("datasetVersions/")
    found = list(open_dataset(open_store((home / "store").as_uri()), dataset).iter_wafers())
    assert {each.split for each in found if each.class_id == none.class_id} == set(Split)
    free = [each for each in found if each.class_id == scratch.class_id and not each.lot.startswith("L")]
    assert {each.split for each in free} == {Split.TUNE, Split.TEST}
    assert abs(sum(each.split is Split.TEST for each in free) - 10) <= 2
    side_of_lot: dict[str, Split] = {}
    assert all(side_of_lot.setdefault(each.lot, each.split) is each.split for each in found if each.lot)
    assert any("do not measure" in each for each in (await studio.datasets.get(dataset)).warnings)
    with pytest.raises(FailedPreconditionError) as refused:
        await studio.generation.start(project.project_id, [GenerationRequest(none.class_id, 4)])
    assert refused.value.reason == "ONLY_REAL_TEACH"


async def test_an_evaluation_of_only_normal_knows_the_normal_class(studio: Studio, services: FakeServices) -> None:
    project = await studio.projects.create("Normal", Task.NORMAL, classes=["Scratch", "Donut"])
    none, scratch, donut = await studio.classes.list(project.project_id)
    await studio.wafers.add(none.class_id, wafers(30, lots=6))
    await studio.wafers.add(scratch.class_id, wafers(10, first=500, lots=2))
    services.answer("CreateTrainingJob", messages.training("datasetVersions/d"))
    run = await studio.training.start(project.project_id)
    rows = [
        trainer_pb2.ClassScore(class_id=none.class_id, display_name="none", wafers=10, found=9, recall=0.9),
        trainer_pb2.ClassScore(class_id=scratch.class_id, display_name="Scratch", wafers=10, found=10, recall=1.0),
        trainer_pb2.ClassScore(class_id=donut.class_id, display_name="Donut", wafers=4, found=3, recall=0.75),
    ]
    scores = trainer_pb2.Evaluation(
        wafers=24, classes=rows, auroc=0.95, accuracy=22 / 24, task=trainer_pb2.TrainingConfig.TASK_ONLY_NORMAL
    )
    done = messages.training(
        "datasetVersions/d", T.STATE_SUCCEEDED, result=trainer_pb2.TrainingResult(tune=scores, test=scores)
    )
    services.answer("GetTrainingJob", done)
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(model_id=project.model_id, version=1))
    services.answer("RepositoryModelLoad", grpc_service_pb2.RepositoryModelLoadResponse())
    services.always("RepositoryIndex", lambda _: grpc_service_pb2.RepositoryIndexResponse())
    services.always("ListModels", lambda _: predictor_pb2.ListModelsResponse())
    await studio.models.publish(run.run_id)
    view = await studio.evaluation.of_run(run.run_id)
    assert (view.normal_id, view.worst_found, view.evaluation.task) == (none.class_id, donut.class_id, Task.NORMAL)
    assert view.evaluation.normal_figures(view.normal_id) == (9, 10, 13, 14)
    assert view.evaluation.confusion == ()
    assert (await studio.projects.list())[0].score == pytest.approx(0.95)


async def test_a_name_with_a_plus_is_refused_where_it_joins_patterns(studio: Studio) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await studio.projects.create("Mixed", Task.SEVERAL, classes=["Center+Scratch"])
    assert refused.value.reason == "NAME_WITH_PLUS"
    assert await studio.projects.list() == ()
