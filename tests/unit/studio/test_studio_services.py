from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from inference import grpc_service_pb2
from teachwafer.generator.v1 import generator_pb2
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.trainer.v1 import trainer_pb2

from gateway import converters, values
from gateway.settings import GatewaySettings
from gateway.studio import Studio
from gateway.studio.sample import PATTERNS, WAFERS
from gateway.values import (
    Decision,
    GenerationPreview,
    GenerationProgress,
    GenerationRequest,
    JobState,
    JobStateChanged,
    Method,
    ModelState,
    Project,
    SampleState,
    UploadFile,
    VariationOptions,
)
from services.common.dataset import DatasetWafer, DatasetWriter, GeneratedWafers, Origin, Split, open_dataset
from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    to_status,
)
from services.common.store import open_store
from services.common.wafer_map import WaferIdentity, WaferMap
from services.common.wafer_map_converter import from_proto, to_proto
from services.common.wafer_set import GridSequence
from tests.helpers.eventually import assert_eventually
from tests.unit.studio import messages
from tests.unit.studio.fake_services import FakeServices
from tests.unit.studio.messages import G, T
from tests.unit.studio.wafer_makers import die_list, grid, wafers


@pytest.fixture
async def project(studio: Studio) -> Project:
    made = await studio.projects.create("P", classes=["Center", "Donut"])
    _, center, donut = await studio.classes.list(made.project_id)
    await studio.wafers.add(center.class_id, wafers(30, lots=10))
    await studio.wafers.add(donut.class_id, wafers(30, first=100, lots=10))
    return made


@pytest.fixture
async def class_ids(studio: Studio, project: Project) -> list[str]:
    return [each.class_id for each in await studio.classes.list(project.project_id)][1:]


# Generation


async def test_generated_wafers_are_looked_at_and_then_become_wafers_of_their_class(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str], home: object
) -> None:
    services.answer("CreateGenerationJob", messages.generation("datasetVersions/d"))
    options = VariationOptions(rotation_degrees=90, vertical_mirror=False)
    requests = [
        GenerationRequest(class_ids[0], 4, Method.VARIATIONS, options),
        GenerationRequest(class_ids[1], 2, Method.LEARNED, steps=9),
    ]
    run = await studio.generation.start(project.project_id, requests, seed=5, request_id="g1")
    job = services.requests["CreateGenerationJob"][0].generation_job
    assert [converters.request_from_proto(each) for each in job.classes] == requests
    assert run.requests == tuple(requests)
    services.answer("GetGenerationJob", messages.generation("datasetVersions/d", G.STATE_RUNNING))
    with pytest.raises(FailedPreconditionError):
        await studio.generation.accept(run.run_id)

    base = job.dataset_version.removeprefix("datasetVersions/")
    _write_generated(f"{home}/store", base, class_ids)
    result = generator_pb2.GenerationResult(dataset_version="datasetVersions/made")
    result.classes.add(class_id=class_ids[0], count=4, parents=3, realism=generator_pb2.Realism(coverage=0.5))
    done = messages.generation(job.dataset_version, G.STATE_SUCCEEDED, result=result)
    services.always("GetGenerationJob", lambda _: done)
    assert (await studio.generation.get(run.run_id)).result is not None
    shown = await studio.generation.results(run.run_id)
    assert len(shown) == 6
    assert len(await studio.generation.results(run.run_id, class_ids[1])) == 2
    assert await studio.generation.results(run.run_id, offset=2, limit=2) != shown[:2]
    wrong = shown[0][0]
    change = await studio.generation.accept(run.run_id, leave_out=[wrong])
    assert change.params["count"] == 5
    assert (await studio.generation.accept(run.run_id)).change_id == change.change_id
    board = await studio.projects.board(project.project_id)
    assert [card.counts.generated for card in board.cards] == [0, 3, 2]
    assert board.counts.lots == 10
    page = await studio.wafers.page(project.project_id, generated=True)
    assert {each.wafer_id for each in page.wafers} == {each for each, _ in shown} - {wrong}
    assert {each.origin for each in page.wafers} == {Origin.VARIATION, Origin.LEARNED}
    assert all(each.parent_id for each in page.wafers)
    assert (await studio.generation.list(project.project_id))[0].accepted
    await studio.history.undo(change.change_id)
    assert (await studio.projects.board(project.project_id)).counts.generated == 0


async def test_accepting_many_wafers_takes_no_more_memory_than_few(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str], home: object
) -> None:
    async def peak(run_id: str, count: int) -> int:
        services.answer("CreateGenerationJob", messages.generation("datasetVersions/d", run=run_id))
        run = await studio.generation.start(project.project_id, [GenerationRequest(class_ids[0], count)])
        base = services.requests["CreateGenerationJob"][-1].generation_job.dataset_version
        store = open_store(f"{home}/store")
        parent = next(open_dataset(store, base).iter_wafers(Split.TRAIN))
        dies = np.random.default_rng(count).integers(1, 3, (count, 60, 60), np.uint8)
        grids = GridSequence(dies.reshape(-1), np.full((count, 2), 60, np.int64))
        parents = np.zeros(count, np.int64)
        with DatasetWriter(store, run_id, open_dataset(store, base).classes) as writer:
            writer.add_generated(
                GeneratedWafers(
                    "g-", 0, grids, class_ids[0], Origin.VARIATION, parents, [parent.wafer_id], [parent.lot]
                )
            )
            writer.finish()
        result = generator_pb2.GenerationResult(dataset_version=f"datasetVersions/{run_id}")
        done = messages.generation(base, G.STATE_SUCCEEDED, run=run_id, result=result)
        services.always("GetGenerationJob", lambda _: done)
        tracemalloc.start()
        change = await studio.generation.accept(run.run_id)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert change.params["count"] == count
        return most

    # A thousand wafers are read at a time; four thousand more are 14 MB of dies.
    assert await peak("many", 6000) < await peak("few", 2000) + (3 << 20)


def _write_generated(url: str, base: str, class_ids: list[str]) -> None:
    store = open_store(url)
    source = open_dataset(store, base)
    parents = [each for each in source.iter_wafers(Split.TRAIN) if each.class_id == class_ids[0]]
    others = [each for each in source.iter_wafers(Split.TRAIN) if each.class_id == class_ids[1]]
    with DatasetWriter(store, "made", source.classes, parent=base) as writer:
        for index, parent in enumerate([*parents[:4], *others[:2]]):
            origin = Origin.VARIATION if index < 4 else Origin.LEARNED
            dies = grid(7000 + index)
            writer.add([DatasetWafer(f"g{index}", dies, parent.class_id, parent.lot, origin, parent.wafer_id)])
        writer.finish()


async def test_the_events_of_a_generation_carry_wafers(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str]
) -> None:
    services.answer("CreateGenerationJob", messages.generation("datasetVersions/d"))
    run = await studio.generation.start(project.project_id, [GenerationRequest(class_ids[0], 4)])
    event = generator_pb2.GenerationEvent
    made = event.Progressed(stage="making", done=2, total=4)
    services.answer(
        "WatchGenerationJob",
        [
            event(sequence=1, event_time=messages.moment(), state_changed=event.StateChanged(state=G.STATE_RUNNING)),
            event(sequence=2, event_time=messages.moment(), progressed=made),
            UnavailableError("Drains."),
        ],
        [event(sequence=3, event_time=messages.moment(), preview=event.Preview(wafers=[to_proto(wafers(1)[0])]))],
    )
    services.answer("GetGenerationJob", messages.generation("datasetVersions/d", G.STATE_CANCELLED))
    seen = [each async for each in studio.generation.watch(run.run_id)]
    assert [type(each) for each in seen] == [JobStateChanged, GenerationProgress, GenerationPreview]
    assert isinstance(seen[2], GenerationPreview)
    assert (seen[2].maps[0].dies == wafers(1)[0].dies).all()
    assert (await studio.generation.list(project.project_id))[0].state is JobState.CANCELLED


async def test_a_class_without_enough_real_wafers_cannot_be_generated_from(
    studio: Studio, project: Project, class_ids: list[str]
) -> None:
    scratch, _ = await studio.classes.add(project.project_id, "Scratch")
    for request, reason in (
        (GenerationRequest(scratch.class_id, 5), "NO_PARENTS"),
        (GenerationRequest(scratch.class_id, 5, Method.LEARNED), "NO_PARENTS"),
    ):
        with pytest.raises(FailedPreconditionError) as caught:
            await studio.generation.start(project.project_id, [request])
        assert caught.value.reason == reason
    await studio.wafers.add(scratch.class_id, wafers(19, first=300))
    with pytest.raises(FailedPreconditionError) as caught:
        await studio.generation.start(project.project_id, [GenerationRequest(scratch.class_id, 5, Method.LEARNED)])
    assert (caught.value.reason, caught.value.metadata["wafers"]) == ("TOO_FEW_WAFERS", "19")
    with pytest.raises(InvalidArgumentError):
        await studio.generation.start(project.project_id, [])
    with pytest.raises(NotFoundError):
        await studio.generation.start(project.project_id, [GenerationRequest("nothing", 5)])


# Answers


async def test_answers_use_the_present_names_and_colours_of_the_project(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str]
) -> None:
    await studio.classes.rename(class_ids[0], "Middle")
    colour = (await studio.classes.list(project.project_id))[1].colour
    heat = predictor_pb2.HeatMap(rows=12, columns=10, heat=bytes(range(120)))
    failed = predictor_pb2.WaferAnswer(status=to_status(InvalidArgumentError("No die.", reason="NO_DIE")))
    services.answer(
        "Classify",
        predictor_pb2.ClassifyResponse(
            version=3,
            answers=[
                messages.wafer_answer(class_ids[0], 0.75, heat_map=heat),
                failed,
                messages.wafer_answer("foreign", 0.5),
            ],
        ),
    )
    found = await studio.answers.classify(project.model_id, wafers(3), explain=True)
    first, second, third = found.answers
    assert (found.version, first.name, first.probabilities[0].colour) == (3, "Middle", colour)
    assert first.decision is Decision.ACCEPTED
    assert first.heat is not None
    assert first.heat.shape == (12, 10)
    assert second.problem is not None
    assert (second.decision, second.problem.reason) == (Decision.FAILED, "NO_DIE")
    assert third.name == "taught name"
    request = services.requests["Classify"][0]
    assert (request.model, request.explain, len(request.wafers)) == (project.model_id, True, 3)


async def test_many_wafers_go_in_several_calls_to_the_same_version(
    studio: Studio, services: FakeServices, project: Project
) -> None:
    def answer(request: Any) -> Any:
        answers = [messages.wafer_answer("a", 0.5) for _ in request.wafers]
        return predictor_pb2.ClassifyResponse(version=request.version or 7, answers=answers)

    services.always("Classify", answer)
    found = await studio.answers.classify("m", wafers(1) * 2500)
    assert len(found.answers) == 2500
    assert [(len(each.wafers), each.version) for each in services.requests["Classify"]] == [
        (1024, 0),
        (1024, 7),
        (452, 7),
    ]


async def test_files_are_classified_and_nothing_is_kept(
    studio: Studio, services: FakeServices, project: Project, settings: GatewaySettings
) -> None:
    services.answer(
        "Classify",
        predictor_pb2.ClassifyResponse(version=1, answers=[messages.wafer_answer("a", 0.5) for _ in range(2)]),
    )
    files = [UploadFile("lot.csv", die_list([grid(1), grid(2)])), UploadFile("x.bin", b"\x00" * 40)]
    found = await studio.answers.classify_files("m", files)
    assert [each.source_name.startswith("lot.csv") for each in found.answers] == [True, True]
    assert [each.name for each in found.skipped] == ["x.bin"]
    assert not list(settings.home.glob("imports/*"))
    with pytest.raises(InvalidArgumentError) as caught:
        await studio.answers.classify_files("m", files[1:])
    assert caught.value.reason == "NO_WAFER_FOUND"


async def _published(studio: Studio, services: FakeServices, project: Project, class_ids: list[str]) -> None:
    """Lets a training of the project succeed and be published as version 1."""
    services.answer("CreateTrainingJob", messages.training("datasetVersions/d"))
    run = await studio.training.start(project.project_id)
    dataset = services.requests["CreateTrainingJob"][0].training_job.dataset_version
    result = trainer_pb2.TrainingResult(tune=messages.evaluation(class_ids, 0.8), test=messages.evaluation(class_ids))
    done = messages.training(dataset, T.STATE_SUCCEEDED, result=result)
    services.always("GetTrainingJob", lambda _: done)
    services.answer("WatchTrainingJob", messages.training_events(T.STATE_SUCCEEDED))
    services.answer("PublishModel", trainer_pb2.PublishModelResponse(version=1))
    services.answer("RepositoryModelLoad", grpc_service_pb2.RepositoryModelLoadResponse())
    _ = [event async for event in studio.training.watch(run.run_id)]


def _by_first_fail(class_ids: list[str]) -> Callable[[Any], Any]:
    """A predictor whose answer and embedding hang on the wafer alone."""

    def answer(request: Any) -> Any:
        answers = []
        for message in request.wafers:
            dies = from_proto(message).dies.astype(np.float32).ravel()
            one = messages.wafer_answer(class_ids[int(dies.sum()) % 2], float(dies.mean()) / 2)
            if request.embed:
                one.embedding.extend((dies / np.linalg.norm(dies)).tolist())
            answers.append(one)
        return predictor_pb2.ClassifyResponse(version=1, answers=answers)

    return answer


async def test_the_nearest_taught_wafers_of_an_answer_come_first(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str]
) -> None:
    await _published(studio, services, project, class_ids)
    services.always("Classify", _by_first_fail(class_ids))
    dataset = (await studio.datasets.list(project.project_id))[0]
    taught = next(open_dataset(studio._desk.store, dataset.dataset_id).iter_wafers(Split.TRAIN))
    found = await studio.answers.classify_wafers(project.model_id, [taught.wafer_id], neighbours=3)
    near = found.answers[0].neighbours
    assert (near[0].wafer_id, near[0].class_id) == (taught.wafer_id, taught.class_id)
    assert near[0].similarity == pytest.approx(1, abs=1e-5)
    assert [each.similarity for each in near] == sorted((each.similarity for each in near), reverse=True)
    calls = len(services.requests["Classify"])
    await studio.answers.classify(project.model_id, wafers(2), neighbours=3)
    assert len(services.requests["Classify"]) == calls + 1
    unknown = await studio.answers.classify("model-of-others", wafers(1), neighbours=3)
    assert unknown.answers[0].neighbours == ()


# Evaluation


async def test_an_evaluation_names_its_part_and_opens_its_cells(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str]
) -> None:
    await _published(studio, services, project, class_ids)
    run = (await studio.training.list(project.project_id))[0]
    view = await studio.evaluation.of_run(run.run_id)
    assert (view.part, view.has_test, view.worst_found) == ("test", True, class_ids[0])
    assert view.evaluation.confusion == ((4, 1), (0, 5))
    assert view.evaluation.classes[0].missed == 1
    assert view.names[class_ids[0]] == "Center"
    assert (await studio.evaluation.of_run(run.run_id, part="tune")).evaluation.macro_f1 == pytest.approx(0.8)
    with pytest.raises(NotFoundError) as caught:
        await studio.evaluation.of_run(run.run_id, part="../x")
    assert caught.value.reason == "NO_SUCH_PART"

    services.answer("Classify", NotFoundError("model", project.model_id))
    with pytest.raises(FailedPreconditionError) as not_loaded:
        await studio.evaluation.cell(run.run_id, *class_ids)
    assert not_loaded.value.reason == "MODEL_NOT_LOADED"
    services.always("Classify", _by_first_fail(class_ids))
    cells = {
        (true, called): await studio.evaluation.cell(run.run_id, true, called)
        for true in class_ids
        for called in class_ids
    }
    found = [each for cell in cells.values() for each in cell]
    frozen = await studio.datasets.get(run.dataset_id)
    assert len(found) == len({each.wafer_id for each in found}) == frozen.wafers["test"]
    for (true, called), cell in cells.items():
        assert all((each.true_id, each.predicted_id) == (true, called) for each in cell)
        assert [each.probability for each in cell] == sorted((each.probability for each in cell), reverse=True)
    assert len(services.requests["Classify"]) == 2


# Models


async def test_models_show_what_catalogue_repository_and_server_know(
    studio: Studio, services: FakeServices, project: Project, class_ids: list[str]
) -> None:
    await _published(studio, services, project, class_ids)
    index = grpc_service_pb2.RepositoryIndexResponse()
    index.models.add(name=project.model_id, version="1", state="UNAVAILABLE", reason="golden batch differs")
    index.models.add(name="other", version="12", state="READY")
    index.models.add(name="other", version="3", state="UNAVAILABLE", reason="unloaded")
    loaded = predictor_pb2.ListModelsResponse()
    loaded.models.add(
        model="other",
        version=12,
        classes=[predictor_pb2.ModelClass(class_id="c", display_name="C")],
        execution_provider="CPUExecutionProvider",
        latency_ms_p50=4.5,
    )
    services.answer("RepositoryIndex", index)
    services.answer("ListModels", loaded)
    models = {(each.model_id, each.version): each for each in await studio.models.list()}
    assert models[project.model_id, 1].state is ModelState.REJECTED
    assert models[project.model_id, 1].score == pytest.approx(0.9)
    assert (models["other", 12].state, models["other", 12].latency_ms) == (ModelState.READY, 4.5)
    assert models["other", 3].state is ModelState.UNLOADED
    await services.stop()
    (own,) = await studio.models.of_project(project.project_id)
    assert (own.state, own.version) == (ModelState.UNKNOWN, 1)


# Server and sample


async def test_the_server_state_tells_queues_and_who_is_away(
    studio: Studio, services: FakeServices, project: Project, settings: GatewaySettings
) -> None:
    jobs = [
        messages.training("datasetVersions/d", T.STATE_QUEUED, run="b"),
        messages.training("datasetVersions/d", T.STATE_RUNNING, run="a", device="CPU, 2 cores"),
        messages.training("datasetVersions/d", T.STATE_SUCCEEDED, run="0"),
    ]
    services.answer("ListTrainingJobs", trainer_pb2.ListTrainingJobsResponse(training_jobs=jobs))
    services.answer("ListGenerationJobs", UnavailableError("Starts."))
    services.answer("ListModels", predictor_pb2.ListModelsResponse())
    state = await studio.server.state()
    trainer, generator, predictor = state.services
    assert trainer.queue is not None
    assert (trainer.queue.queued, trainer.queue.running, trainer.queue.device) == (1, 1, "CPU, 2 cores")
    assert not generator.reachable
    assert (predictor.reachable, predictor.models) == (True, 0)
    assert not state.all_reachable
    storage = await studio.server.storage()
    assert (storage.projects, storage.wafers) == (1, 60)
    assert storage.database_bytes > 0


def _simulate(request: Any) -> list[Any]:
    batches = []
    for index, each in enumerate(request.classes):
        made = [
            WaferMap(grid(index * 1000 + i), WaferIdentity(lot=f"S{index}-{i // request.wafers_per_lot}"))
            for i in range(each.count)
        ]
        batches.append(
            generator_pb2.SimulateWafersResponse(wafers=[to_proto(w) for w in made], class_indexes=[index] * each.count)
        )
    return batches


async def test_a_simulation_goes_on_where_its_connection_broke_off(studio: Studio, services: FakeServices) -> None:
    def broken_off(request: Any) -> list[Any]:
        rest = _simulate(request)[request.skip :]
        return rest if request.skip else [*rest[:2], UnavailableError("The connection is old.")]

    services.always("SimulateWafers", broken_off)
    await studio.sample.ensure()
    await assert_eventually(lambda: studio.sample.progress().state is SampleState.READY)
    assert [request.skip for request in services.requests["SimulateWafers"]] == [0, 2]
    (summary,) = await studio.projects.list()
    assert summary.wafers == len(PATTERNS) * WAFERS


async def test_the_sample_project_is_made_once_even_when_the_generator_starts_late(
    studio: Studio, services: FakeServices, settings: GatewaySettings
) -> None:
    services.answer("SimulateWafers", [UnavailableError("Starts.")])
    services.always("SimulateWafers", _simulate)
    assert studio.sample.progress().state is SampleState.ABSENT
    await studio.sample.ensure()
    await studio.sample.ensure()
    await assert_eventually(lambda: studio.sample.progress().state is SampleState.READY)
    (summary,) = await studio.projects.list()
    assert summary.project.sample
    assert (summary.classes, summary.wafers) == (len(PATTERNS), len(PATTERNS) * WAFERS)
    board = await studio.projects.board(summary.project.project_id)
    assert board.training.open
    assert all(card.counts.lots >= 3 for card in board.cards)
    await studio.projects.trash(summary.project.project_id)
    await studio.projects.purge(summary.project.project_id)
    async with await Studio.open(settings, background=False) as restarted:
        assert (await restarted.sample.ensure()).state is SampleState.ABSENT
    assert await studio.projects.list() == ()


async def test_a_sample_that_cannot_be_made_says_why_and_is_tried_again(studio: Studio, services: FakeServices) -> None:
    services.answer("SimulateWafers", FailedPreconditionError("No.", reason="NO_SIMULATOR"))
    await studio.sample.ensure()
    await assert_eventually(lambda: studio.sample.progress().state is SampleState.FAILED)
    problem = studio.sample.progress().problem
    assert problem is not None
    assert problem.reason == "NO_SIMULATOR"
    services.answer("SimulateWafers", _simulate(services.requests["SimulateWafers"][0]))
    await studio.sample.ensure()
    await assert_eventually(lambda: studio.sample.progress().state is SampleState.READY)


# The wire stays outside


def test_both_services_number_their_states_alike() -> None:
    assert T.State.items() == G.State.items()
    names = {number: name.removeprefix("STATE_").lower() for name, number in T.State.items() if number}
    assert {number: state.value for number, state in converters._STATES.items()} == names


def test_no_message_of_the_wire_reaches_the_values() -> None:
    for name in values.__all__:
        kind = getattr(values, name)
        if is_dataclass(kind):
            assert not [field for field in fields(kind) if "_pb2" in str(field.type)], name
            assert kind.__dataclass_params__.frozen, name  # type: ignore[attr-defined]
