"""Runs one attempt of a generation job: `python -m services.generator.worker --run-folder FOLDER --attempt N`.

The data set version that it makes is named by the job, so that an attempt which finds it finished returns it and makes
nothing twice. Wafers depend on the request alone: a new attempt takes those of finished shards from the store (see
`shards`) and makes the others, and writes the same ones.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import Dataset, DatasetWafer, DatasetWriter, Split, open_dataset, read_manifest
from services.common.errors import NotFoundError
from services.common.files import write_file
from services.common.jobs.worker import PROGRESS_KIND, JobContext, run_worker
from services.generator.domain import (
    PREVIEW_KIND,
    ClassOutcome,
    ClassRequest,
    GenerationOutcome,
    GenerationSpec,
    LearnedOptions,
    check_against,
    check_parents,
    class_of,
)
from services.generator.embedding import WIDTH, WaferEmbedding
from services.generator.production import ClassProduction, Listener, Progress
from services.generator.proof import DRAWS, prove
from services.generator.real_wafers import real_by_class
from services.generator.realism import Judges
from services.generator.recognition import recogniser_of
from services.generator.shards import Shards, remove_old_shards

_OUTCOME_FILE = "outcome.json"


def work(context: JobContext) -> dict[str, Any]:
    """Makes the wafers of each class and publishes them as one data set version.

    Raises:
        NotFoundError: The data set version or a class is not there.
        FailedPreconditionError: A class has too few real training wafers, or shipped weights are missing.
    """
    spec = GenerationSpec.from_json(context.spec)
    dataset_id = f"generated-{context.job_id.lower()}"
    if (finished := _finished(context, dataset_id)) is not None:
        return finished
    dataset = open_dataset(context.store, spec.dataset_id)
    check_against(spec, dataset.manifest)
    embedding = WaferEmbedding()
    outcomes: list[ClassOutcome] = []
    made: dict[str, NDArray[np.float32]] = {}
    weights = np.array([_weight(request) for request in spec.classes])
    with DatasetWriter(context.store, dataset_id, dataset.classes, parent=dataset.manifest.dataset_id) as writer:
        real = real_by_class(dataset, Split.TRAIN)
        for index, (request, judges) in enumerate(zip(spec.classes, judges_of(real, spec, embedding), strict=True)):
            begin, weight = weights[:index].sum() / weights.sum(), weights[index] / weights.sum()
            reporter = _Reporter(context, request.class_id, float(begin), float(weight))
            production = production_of(context, dataset, spec, index, real, reporter, judges)
            for wafers in production.wafers():
                writer.add_generated(wafers)
            outcomes.append(production.outcome())
            made[request.class_id] = production.embeddings() if spec.prove else np.zeros((0, WIDTH), np.float32)
        proof = None
        if spec.prove:
            end = _Reporter(context, class_id="", begin=1.0, weight=0.0)

            def proved(draw: int) -> None:
                end.progressed(Progress("proving", draw, DRAWS, 1.0))

            proof = prove(dataset, embedding, made, spec.seed, proved)
        whole = GenerationOutcome(dataset_id, tuple(outcomes), context.elapsed_s(), context.peak_memory_bytes(), proof)
        context.check_cancelled()
        write_file(context.checkpoints / _OUTCOME_FILE, json.dumps(whole.to_json()).encode())
        writer.finish()
    remove_old_shards(context.store)
    return whole.to_json()


def production_of(
    context: JobContext,
    dataset: Dataset,
    spec: GenerationSpec,
    index: int,
    real: Mapping[str, Sequence[DatasetWafer]],
    listener: Listener,
    judges: Judges | None,
) -> ClassProduction:
    """Returns what makes the wafers of one class of a job.

    Args:
        context: The job.
        dataset: The data set version with the parents.
        spec: The whole request.
        index: Position of the class in it.
        real: Real training wafers of each class, from `real_by_class`.
        listener: Hears how it goes.
        judges: What looks at the wafers; None: nothing does.

    Raises:
        NotFoundError: The class is not there.
        FailedPreconditionError: It has too few real training wafers.
    """
    request = spec.classes[index]
    class_ = class_of(dataset.classes, request.class_id)
    parents = real.get(request.class_id, ())
    check_parents(request, class_, len(parents))
    wafers_depend_on = {
        "dataset": dataset.manifest.sha256,
        "class": spec.to_json()["classes"][index],
        "pattern": class_.pattern,
        "seed": [spec.seed, index],
    }
    return ClassProduction(
        request,
        class_,
        parents,
        seed=int(np.random.SeedSequence((spec.seed, index)).generate_state(1)[0]),
        shards=Shards(context.store, wafers_depend_on),
        checkpoint=context.checkpoints / f"learned-{index}.npz",
        listener=listener,
        judges=judges,
    )


def judges_of(
    real: Mapping[str, Sequence[DatasetWafer]], spec: GenerationSpec, embedding: WaferEmbedding
) -> list[Judges]:
    """Returns what judges the wafers of each class of a job, from the real training wafers of all classes."""
    recogniser, numbers = recogniser_of(real, embedding, spec.seed)
    return [Judges(embedding, recogniser, numbers.get(request.class_id, 0)) for request in spec.classes]


class _Reporter:
    """Turns what production tells into events of the job, and stops it when the job was stopped."""

    def __init__(self, context: JobContext, class_id: str, begin: float, weight: float) -> None:
        self._context = context
        self._class_id = class_id
        self._begin = begin
        self._weight = weight

    def progressed(self, progress: Progress) -> None:
        """Reports how far the whole job is."""
        self._context.check_cancelled()
        share = self._begin + self._weight * progress.share
        self._context.report(
            PROGRESS_KIND,
            progress=share,
            device=progress.device,
            class_id=self._class_id,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            loss=progress.loss,
            share=share,
            device_name=progress.device,
        )

    def previewed(self, grids: Sequence[NDArray[np.uint8]]) -> None:
        """Reports wafers to look at."""
        wafers = [
            {"rows": grid.shape[0], "columns": grid.shape[1], "dies": base64.b64encode(grid.tobytes()).decode()}
            for grid in grids
        ]
        self._context.report(PREVIEW_KIND, class_id=self._class_id, wafers=wafers)


def _finished(context: JobContext, dataset_id: str) -> dict[str, Any] | None:
    """Returns the result of an earlier attempt that published and died before it could say so."""
    try:
        read_manifest(context.store, dataset_id)
        outcome: dict[str, Any] = json.loads((context.checkpoints / _OUTCOME_FILE).read_bytes())
    except (NotFoundError, FileNotFoundError):
        return None
    return outcome


def _weight(request: ClassRequest) -> float:
    """Returns about how many seconds a class takes, for the progress of the whole job."""
    return (25.0 if isinstance(request.method, LearnedOptions) else 0.0) + request.count / 5000


if __name__ == "__main__":
    run_worker(work)
