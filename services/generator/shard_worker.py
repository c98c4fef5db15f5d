"""Makes some of a job's shards, so that several machines share the work.

`python -m services.generator.shard_worker --run-folder FOLDER --of COUNT` makes every COUNT-th shard from the one on
with the number in JOB_COMPLETION_INDEX, which Kubernetes sets in the pods of an Indexed Job (`deploy/k8s/jobs/shards`);
`--index` says it elsewhere. An attempt that runs meanwhile or afterwards finds the shards in the store, makes those
that are missing, and puts them together. Exit codes are those of all jobs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import Split, open_dataset
from services.common.errors import InvalidArgumentError
from services.common.jobs.run_folder import RunFolder
from services.common.jobs.worker import JobContext, open_context, outcome_of
from services.generator.domain import GenerationSpec, LearnedOptions, check_against
from services.generator.embedding import WaferEmbedding
from services.generator.production import Progress
from services.generator.real_wafers import real_by_class
from services.generator.realism import Judges
from services.generator.worker import judges_of, production_of


def make_share(context: JobContext, index: int, of: int) -> int:
    """Makes a share of the shards of a job; those that are finished stay as they are.

    Args:
        context: The job.
        index: Number of the share, 0 to `of` - 1.
        of: Shares.

    Returns:
        Wafers in the share.
    """
    spec = GenerationSpec.from_json(context.spec)
    dataset = open_dataset(context.store, spec.dataset_id)
    check_against(spec, dataset.manifest)
    # Only learned wafers are shown to judges before they are kept; what the figures need is up to the last attempt.
    learned = any(isinstance(each.method, LearnedOptions) for each in spec.classes)
    real = real_by_class(dataset, Split.TRAIN)
    judged: Sequence[Judges | None] = [None] * len(spec.classes)
    if learned:
        judged = judges_of(real, spec, WaferEmbedding())
    made = 0
    for number, judges in enumerate(judged):
        production = production_of(context, dataset, spec, number, real, _Watch(context), judges)
        made += sum(len(wafers) for wafers in production.wafers(range(index, production.shards_wanted, of)))
    return made


class _Watch:
    """Stops when the job was stopped, and is silent otherwise."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def progressed(self, progress: Progress) -> None:
        """Looks whether to go on."""
        self._context.check_cancelled()

    def previewed(self, grids: Sequence[NDArray[np.uint8]]) -> None:
        """Shows nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Makes some of the shards of a generation job.")
    parser.add_argument("--run-folder", type=Path, required=True, help="folder of the job, shared by all workers")
    parser.add_argument("--of", type=int, required=True, help="workers that share the work")
    parser.add_argument(
        "--index",
        type=int,
        default=os.environ.get("JOB_COMPLETION_INDEX"),
        help="number of this worker, from 0 (JOB_COMPLETION_INDEX)",
    )
    options = parser.parse_args(arguments)
    if options.index is None or not 0 <= options.index < options.of:
        parser.error(f"Expected an index of 0 to {options.of - 1}. Received: {options.index}.")

    def work() -> None:
        context = _context(options.run_folder)
        signal.signal(signal.SIGTERM, lambda *_: context.request_stop())
        print(f"{make_share(context, options.index, options.of)} wafers")

    code, _ = outcome_of(work)
    sys.exit(code)


def _context(run_folder: Path) -> JobContext:
    """Returns the context of the job's current attempt.

    Raises:
        InvalidArgumentError: There is no job in the folder.
    """
    try:
        return open_context(run_folder, RunFolder(run_folder).current_attempt())
    except FileNotFoundError:
        raise InvalidArgumentError(
            f"Expected the folder of a generation job that was started. Received: {run_folder}. It is named by the "
            "job's id, in the folder runs of the generator's home.",
            field="--run-folder",
        ) from None


if __name__ == "__main__":
    main()
