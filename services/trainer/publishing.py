"""From a training that ended well to a version in the model repository.

A candidate is the folder of the attempt that succeeded: the files of a version and its manifest. It is checked again
here, because time has passed since it was made: hashes, the graph itself, and the answers to the golden batch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from services.common.errors import DataLossError, FailedPreconditionError
from services.common.files import file_sha256
from services.common.jobs import Job, JobState
from services.common.model_manifest import ModelManifest
from services.common.model_repository import ModelRepository, config_pbtxt
from services.trainer.domain import PARITY_TOLERANCE

CANDIDATE_FILE = "candidate.json"
"""Manifest of a candidate, without model and version; its `files` are hashes of the files beside it."""
MODEL_FILE = "model.onnx"
"""Graph of a candidate and of a version."""
QUANTISED_FOLDER = "quantised"
"""Folder of the quantised variant inside that of the attempt: a candidate of its own."""


def write_candidate(folder: Path, manifest: ModelManifest, file_names: tuple[str, ...]) -> None:
    """Writes the manifest of a candidate, with the hashes of its files, beside them."""
    files = {name: file_sha256(folder / name) for name in file_names}
    (folder / CANDIDATE_FILE).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


def publish(
    repository: ModelRepository,
    job: Job,
    attempt_folder: Path,
    model_id: str,
    request_id: str,
    *,
    quantised: bool = False,
) -> int:
    """Verifies what a training made and publishes it as the next version of a model.

    Args:
        repository: Where to.
        job: The training.
        attempt_folder: Folder of its last attempt.
        model_id: Name of the model.
        request_id: The same id again returns the version that it made the first time.
        quantised: Whether to publish the quantised variant.

    Raises:
        FailedPreconditionError: The training has not succeeded, or has no quantised variant that may be published.
        DataLossError: A file is missing or has changed since, or the graph answers otherwise than when it was taught.
        InvalidArgumentError: The model name is invalid.
    """
    if job.state is not JobState.SUCCEEDED:
        raise FailedPreconditionError(
            f"Expected a training that succeeded. Received: {job.state.value}. Wait for it, or teach again.",
            subject=f"trainingJobs/{job.id}",
            reason="TRAINING_NOT_SUCCEEDED",
        )
    if quantised:
        _check_quantised(job)
    folder = attempt_folder / QUANTISED_FOLDER if quantised else attempt_folder
    manifest = _read_candidate(folder)
    files = {name: folder / name for name in manifest.files}
    for name, path in files.items():
        found = file_sha256(path) if path.is_file() else "no file"
        if found != manifest.files[name]:
            raise DataLossError(
                f"Expected {name} with SHA-256 {manifest.files[name]}. Received: {found}. Teach the model again."
            )
    embedding, heat_rows, heat_columns = _check_graph(files[MODEL_FILE], files[manifest.golden])
    config = config_pbtxt(model_id, len(manifest.classes), embedding, heat_rows, heat_columns)
    return repository.publish(model_id, files, manifest, config, request_id)


def _check_quantised(job: Job) -> None:
    """Raises FailedPreconditionError unless a job has a quantised variant that answers nearly as the model does."""
    variant = (job.result or {}).get("quantised")
    if variant is None:
        raise FailedPreconditionError(
            "Expected a training that also made a quantised variant. Received: one without. Teach again with "
            "`quantise`, or publish the model as it is.",
            subject=f"trainingJobs/{job.id}",
            reason="NOT_QUANTISED",
        )
    same, least = float(variant["same_answers"]), float(variant["least_same_answers"])
    # Written so that NaN does not pass.
    if not same >= least:
        raise FailedPreconditionError(
            f"Expected a quantised variant that says the same as the model of at least {least:.1%} of the wafers held "
            f"back. Received: {same:.1%} of {variant['compared_wafers']}. Publish the model as it is.",
            subject=f"trainingJobs/{job.id}",
            reason="QUANTISED_DIFFERS",
            metadata={"same_answers": f"{same:.4f}", "least_same_answers": f"{least:.4f}"},
        )


def _read_candidate(folder: Path) -> ModelManifest:
    try:
        return ModelManifest.from_json((folder / CANDIDATE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise DataLossError(
            "Expected the files of the training. Received: none; they were removed. Teach again."
        ) from error


def _check_graph(model: Path, golden: Path) -> tuple[int, int, int]:
    """Checks a graph and its answers to the golden batch.

    Returns:
        Length of the embedding, rows and columns of a heat map.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(model), full_check=True)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with np.load(golden, allow_pickle=False) as archive:
        dies, expected = archive["dies"], archive["probabilities"]
    probabilities, embedding, heat = session.run(["probabilities", "embedding", "heat"], {"dies": dies})
    difference = float(np.abs(np.asarray(probabilities) - expected).max())
    # Written so that NaN does not pass.
    if not difference <= PARITY_TOLERANCE:
        raise DataLossError(
            f"Expected the answers that the model gave when it was taught, within {PARITY_TOLERANCE}. "
            f"Received: a difference of {difference:.2g}. Teach the model again."
        )
    return int(np.asarray(embedding).shape[1]), int(np.asarray(heat).shape[2]), int(np.asarray(heat).shape[3])
