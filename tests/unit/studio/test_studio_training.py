from __future__ import annotations

import pytest
from inference import grpc_service_pb2
from sqlalchemy import Connection
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.trainer.v1 import trainer_pb2

from gateway.catalogue import changes, projects
from gateway.catalogue import wafers as rows
from gateway.catalogue.wafer_rows import NewWafer
from gateway.settings import GatewaySettings
from gateway.studio import Studio
from gateway.values import (
    EpochEnded,
    JobState,
    JobStateChanged,
    ModelPublished,
    ModelSize,
    ModelState,
    Project,
    ProjectState,
    PublishFailed,
    SplitCautionKind,
    TrainingOptions,
    TrainingRun,
)
from services.common.dataset import Origin, Split, open_dataset
from services.common.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.common.store import open_store
from services.common.wafer_map import WaferIdentity, WaferMap
from tests.helpers.eventually import assert_eventually
from tests.unit.studio import messages
from tests.unit.studio.fake_services import FakeServices
from tests.unit.studio.messages import T
from tests.unit.studio.wafer_makers import wafers


@pytest.fixture
async def project(studio: Studio) -> Project:
    made = await studio.projects.create("P", classes=["Center", "Donut"])
    _, center, donut = await studio.classes.list(made.project_id)
    await studio.wafers.add(center.class_id, wafers(30, lots=10))
    await studio.wafers.add(donut.class_id, wafers(30, first=100, lots=10))
    return made


async def _class_ids(studio: Studio, project: Project) -> list[str]:
    return [each.class_id for each in await studio.classes.list(project.project_id)][1:]


async def _started(studio: Studio, services: FakeServices, project: Project, request_id: str = "r1") -> TrainingRun:
    services.answer("CreateTrainingJob", messages.training("datasetVersions/d"))
    return await studio.training.start(project.project_id, TrainingOptions(epochs=7), request_id=request_id)


async def _succeed(studio: Studio, services: FakeServices, project: Project) -> None:
    """Lets the service tell of success from now on."""
    ids = await _class_ids(studio, project)
    result = trainer_pb2.TrainingResult(
        best_epoch=3,
        epochs=7,
        tune=messages.evaluation(ids, 0.8),
        test=messages.evaluation(ids, 0.75),
        doubtful_lots=["lot-9"],
        known_patterns={ids[0]: "Center"},
        split_cautions=[
            {"kind": "KIND_NO_TEST_WAFERS", "class_ids": [ids[1]]},
            {"kind": 99, "class_ids": [ids[1]]},
        ],
        quantised=trainer_pb2.QuantisedVariant(
            test=messages.evaluation(ids, 0.7), same_answers=0.99, least_same_answers=0.98
        ),
    )
    dataset = f"datasetVersions/{(await studio.datasets.list(project.project_id))[0].dataset_id}"
    done = messages.training(dataset, T.STATE_SUCCEEDED, result=result, progress=1)
    services.always("GetTrainingJob", lambda _: done)
    services.always("WatchTrainingJob", lambda _: messages.training_events(T.STATE_QUEUED, T.STATE_SUCCEEDED))


async def test_a_training_begins_with_a_frozen_copy_and_the_options_of_the_person(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    services.answer("CreateTrainingJob", messages.training("datasetVersions/d"))
    options = TrainingOptions(epochs=7, model_size=ModelSize.BEST, use_generated=False, seed=3, learning_rate=0.01)
    run = await studio.training.start(project.project_id, options, request_id="r1")
    (request,) = services.requests["CreateTrainingJob"]
    config = request.training_job.config
    assert (config.epochs, config.model_size, config.seed) == (7, trainer_pb2.TrainingConfig.MODEL_SIZE_BEST, 3)
    assert config.HasField("use_generated_wafers")
    assert not config.use_generated_wafers
    assert request.request_id == "r1"
    dataset_id = request.training_job.dataset_version.removeprefix("datasetVersions/")
    assert (await studio.datasets.get(dataset_id)).wafers["train"] > 0
    assert (run.project_id, run.state) == (project.project_id, JobState.QUEUED)
    board = await studio.projects.board(project.project_id)
    assert board.state is ProjectState.TRAINING
    assert (board.training.reason, board.training.params["run_id"]) == ("already_training", "run-1")
    # The same click twice is one training.
    assert (await studio.training.start(project.project_id, options, request_id="r1")).run_id == "run-1"
    with pytest.raises(FailedPreconditionError) as caught:
        await studio.training.start(project.project_id)
    assert caught.value.reason == "ALREADY_TRAINING"


async def test_watching_ends_with_the_published_model(studio: Studio, services: FakeServices, project: Project) -> None:
    run = await _started(studio, services, project)
    await _succeed(studio, services, project)
    events = [*messages.training_events(T.STATE_QUEUED, T.STATE_RUNNING), messages.epoch(3, 1)]
    services.answer("WatchTrainingJob", [*events, *messages.training_events(T.STATE_SUCCEEDED, first=4)])
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(model_id=project.model_id, version=1))
    services.answer("RepositoryModelLoad", grpc_service_pb2.RepositoryModelLoadResponse())
    seen = [event async for event in studio.training.watch(run.run_id)]
    assert [type(each) for each in seen] == [
        JobStateChanged,
        JobStateChanged,
        EpochEnded,
        JobStateChanged,
        ModelPublished,
    ]
    assert [each.sequence for each in seen] == [1, 2, 3, 4, 4]
    publish = services.requests["PublishModel"][0]
    assert (publish.training_job, publish.model_id) == ("trainingJobs/run-1", project.model_id)
    assert publish.request_id
    board = await studio.projects.board(project.project_id)
    assert (board.state, board.model_version, board.outdated) == (ProjectState.TRAINED, 1, False)
    assert (await studio.projects.list())[0].score == pytest.approx(0.75)
    result = (await studio.training.get(run.run_id)).result
    assert result is not None
    assert result.doubtful_lots == ("lot-9",)
    assert list(result.known_patterns.values()) == ["Center"]
    assert [(each.kind, len(each.class_ids)) for each in result.cautions] == [(SplitCautionKind.NO_TEST_WAFERS, 1)]
    # Watching again tells the same and publishes nothing anew.
    again = [event async for event in studio.training.watch(run.run_id, after_sequence=2)]
    assert isinstance(again[-1], ModelPublished)
    assert len(services.requests["PublishModel"]) == len(services.requests["RepositoryModelLoad"]) == 1


async def test_editing_marks_the_model_as_older_than_the_data_and_renaming_does_not(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    run = await _started(studio, services, project)
    await _succeed(studio, services, project)
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(version=1))
    services.answer("RepositoryModelLoad", grpc_service_pb2.RepositoryModelLoadResponse())
    _ = [event async for event in studio.training.watch(run.run_id)]
    center, _ = await _class_ids(studio, project)
    await studio.classes.rename(center, "Middle")
    assert not (await studio.projects.board(project.project_id)).outdated
    await studio.wafers.add(center, wafers(1, first=999))
    board = await studio.projects.board(project.project_id)
    assert (board.outdated, board.state) == (True, ProjectState.OUTDATED)


async def test_a_lost_connection_loses_no_event(studio: Studio, services: FakeServices, project: Project) -> None:
    run = await _started(studio, services, project)
    cancelled = messages.training("datasetVersions/d", T.STATE_CANCELLED)
    services.always("GetTrainingJob", lambda _: cancelled)
    services.answer(
        "WatchTrainingJob",
        [*messages.training_events(T.STATE_QUEUED, T.STATE_RUNNING), UnavailableError("The service drains.")],
        [messages.epoch(3, 1), UnavailableError("Again.")],
        messages.training_events(T.STATE_CANCELLED, first=4),
    )
    sequences = [event.sequence async for event in studio.training.watch(run.run_id)]
    assert sequences == [1, 2, 3, 4]
    assert [each.after_sequence for each in services.requests["WatchTrainingJob"]] == [0, 2, 3]


async def test_a_refused_model_is_told_and_can_be_tried_again(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    run = await _started(studio, services, project)
    await _succeed(studio, services, project)
    services.answer("PublishModel", DataLossError("The file differs.", reason="HASH_DIFFERS"))
    seen = [event async for event in studio.training.watch(run.run_id)]
    assert isinstance(seen[-1], PublishFailed)
    assert seen[-1].problem.reason == "HASH_DIFFERS"
    board = await studio.projects.board(project.project_id)
    assert board.state is ProjectState.FAILED
    assert board.latest_run is not None
    assert board.latest_run.problem is not None
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(version=4))
    services.answer("RepositoryModelLoad", grpc_service_pb2.RepositoryModelLoadResponse())
    index = grpc_service_pb2.RepositoryIndexResponse()
    index.models.add(name=project.model_id, version="4", state="READY")
    services.always("RepositoryIndex", lambda _: index)
    services.always("ListModels", lambda _: predictor_pb2.ListModelsResponse())
    model = await studio.models.publish(run.run_id)
    assert (model.version, model.state, model.project_id) == (4, ModelState.READY, project.project_id)
    assert model.score == pytest.approx(0.75)
    assert (await studio.projects.board(project.project_id)).state is ProjectState.TRAINED


async def test_the_quantised_variant_is_published_once_as_a_version_of_its_own(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    run = await _started(studio, services, project)
    await _succeed(studio, services, project)
    with pytest.raises(FailedPreconditionError) as caught:
        await studio.models.publish_quantised(run.run_id)
    assert caught.value.reason == "NOT_PUBLISHED"
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(version=4))
    services.always("RepositoryModelLoad", lambda _: grpc_service_pb2.RepositoryModelLoadResponse())
    _ = [event async for event in studio.training.watch(run.run_id)]
    index = grpc_service_pb2.RepositoryIndexResponse()
    for version, state in (("4", "UNAVAILABLE"), ("5", "READY")):
        index.models.add(name=project.model_id, version=version, state=state)
    services.always("RepositoryIndex", lambda _: index)
    services.always("ListModels", lambda _: predictor_pb2.ListModelsResponse())
    refusal = FailedPreconditionError("It differs.", reason="QUANTISED_DIFFERS")
    services.answer("PublishModel", refusal)
    with pytest.raises(FailedPreconditionError) as caught:
        await studio.models.publish_quantised(run.run_id)
    assert caught.value.reason == "QUANTISED_DIFFERS"
    assert (await studio.training.get(run.run_id)).quantised_version == 0
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(version=5))
    model = await studio.models.publish_quantised(run.run_id)
    assert (model.version, model.quantised, model.run_id) == (5, True, run.run_id)
    assert model.score == pytest.approx(0.7)
    assert await studio.models.publish_quantised(run.run_id) == model
    assert [each.quantised for each in services.requests["PublishModel"]] == [False, True, True]
    seen = await studio.training.get(run.run_id)
    assert (seen.model_version, seen.quantised_version) == (4, 5)
    versions = await studio.models.of_project(project.project_id)
    assert [(each.version, each.quantised) for each in versions] == [(5, True), (4, False)]


async def test_a_failed_training_keeps_its_reason_also_while_the_trainer_is_away(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    run = await _started(studio, services, project)
    error = FailedPreconditionError("Too few wafers.", reason="TOO_FEW_WAFERS", metadata={"name": "Center"})
    services.answer("GetTrainingJob", messages.training("datasetVersions/d", T.STATE_FAILED, error=error))
    found = await studio.training.get(run.run_id)
    assert found.problem is not None
    assert (found.state, found.problem.reason, found.problem.metadata["name"]) == (
        JobState.FAILED,
        "TOO_FEW_WAFERS",
        "Center",
    )
    await services.stop()
    assert await studio.training.get(run.run_id) == found
    assert await studio.training.list(project.project_id) == (found,)
    assert (await studio.projects.board(project.project_id)).state is ProjectState.FAILED


async def test_what_the_trainer_refuses_reaches_the_person_as_it_is(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    services.answer("CreateTrainingJob", InvalidArgumentError("Expected 1 to 1,000.", "training_job.config.epochs"))
    with pytest.raises(InvalidArgumentError) as caught:
        await studio.training.start(project.project_id, TrainingOptions(epochs=0))
    assert caught.value.field == "training_job.config.epochs"
    assert await studio.training.list(project.project_id) == ()
    with pytest.raises(NotFoundError):
        await studio.training.get("nothing")
    with pytest.raises(NotFoundError):
        _ = [event async for event in studio.training.watch("nothing")]


async def test_cancelling_asks_once_and_leaves_what_has_ended(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    run = await _started(studio, services, project)
    stopped = messages.training("datasetVersions/d", T.STATE_CANCELLED)
    services.answer("CancelTrainingJob", stopped)
    services.answer("GetTrainingJob", stopped)
    assert (await studio.training.cancel(run.run_id)).state is JobState.CANCELLED
    assert (await studio.training.cancel(run.run_id)).state is JobState.CANCELLED
    assert (await studio.projects.board(project.project_id)).state is ProjectState.READY


async def test_a_closed_browser_and_a_restarted_portal_still_end_with_a_published_model(
    settings: GatewaySettings, studio: Studio, services: FakeServices, project: Project
) -> None:
    await _started(studio, services, project)
    running = messages.training("datasetVersions/d", T.STATE_RUNNING)
    services.answer("GetTrainingJob", running, UnavailableError("The trainer starts."))
    services.answer("WatchTrainingJob", messages.training_events(T.STATE_QUEUED, T.STATE_RUNNING))
    await _succeed(studio, services, project)
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(version=1))
    services.answer("RepositoryModelLoad", grpc_service_pb2.RepositoryModelLoadResponse())
    async with await Studio.open(settings) as restarted:

        async def published() -> None:
            assert (await restarted.projects.board(project.project_id)).state is ProjectState.TRAINED

        await assert_eventually(published, timeout_s=20)


async def test_a_training_that_the_trainer_has_forgotten_fails(
    settings: GatewaySettings, studio: Studio, services: FakeServices, project: Project
) -> None:
    await _started(studio, services, project)
    services.answer("GetTrainingJob", NotFoundError("training job", "trainingJobs/run-1"))
    async with await Studio.open(settings) as restarted:

        async def failed() -> None:
            assert (await restarted.projects.board(project.project_id)).state is ProjectState.FAILED

        await assert_eventually(failed)


async def test_generated_wafers_are_frozen_apart_and_only_where_their_parents_teach(
    studio: Studio, project: Project, home: object
) -> None:
    center, _ = await _class_ids(studio, project)
    frozen = await studio.datasets.freeze(project.project_id)
    store = open_store(f"{home}/store")
    sides = {each.wafer_id: each for each in open_dataset(store, frozen.dataset_id).iter_wafers()}
    parents = {side: next(each for each in sides.values() if each.split is side) for side in Split}

    def children(connection: Connection) -> None:
        made = []
        for index, parent in enumerate(parents.values()):
            child = WaferMap(wafers(1, first=5000 + index)[0].dies, WaferIdentity(lot=parent.lot))
            made.append(NewWafer(child, center, Origin.VARIATION, parent_id=parent.wafer_id))
        learned = WaferMap(wafers(1, first=6000)[0].dies)
        made.append(NewWafer(learned, center, Origin.LEARNED, base_dataset=frozen.dataset_id))
        made.append(NewWafer(WaferMap(wafers(1, first=6001)[0].dies), center, Origin.LEARNED, base_dataset="other"))
        projects.lock(connection, project.project_id)
        _, number = changes.record(connection, project.project_id, "add_wafers", "", {"count": 5})
        rows.insert_all(connection, project.project_id, made, number)

    await studio._desk.write(children)
    again = await studio.datasets.freeze(project.project_id)
    assert again.wafers == frozen.wafers
    # The child of the training parent, and the learned wafer whose base teaches now as it did then.
    assert (again.generated, again.generated_left_out) == (2, 3)
    part = open_dataset(store, again.generated_dataset_id)
    assert part.manifest.parent == again.dataset_id
    assert {each.parent_id for each in part.iter_wafers()} == {parents[Split.TRAIN].wafer_id, ""}
    assert [each.class_id for each in part.classes] == [
        each.class_id for each in open_dataset(store, again.dataset_id).classes
    ]
