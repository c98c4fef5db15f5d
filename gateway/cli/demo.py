"""`teachwafer demo`: the main job once, without a browser, on simulated wafers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.asking import ask, make_ready, measure
from gateway.cli.generated import show_generation
from gateway.cli.generating import make_more
from gateway.cli.options import Home, Json, Local, Reach, Session
from gateway.cli.output import Output, evaluation_json, show_evaluation
from gateway.cli.training import publish_model, show_frozen, teach
from gateway.cli.wafers import Frozen, TaughtWafers, class_id, freeze
from gateway.values import GenerationRequest, TrainingOptions
from services.common.errors import InternalError, TeachwaferError
from services.common.store import open_store

PATTERNS = ("none", "Center", "Donut", "Edge-Loc", "Edge-Ring", "Scratch")
WAFERS = 40
WAFERS_PER_LOT = 4
GENERATED = 40
MODEL = "demo"
SEED = 811
LEAST_ACCURACY = 0.4
"""Share of new wafers below which something is broken; guessing gets 1 in 6 right."""


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Work in the home, so that the model stays. Default: a temporary folder.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, max=200, help="Passes over the training wafers.")] = 20,
    home: Home = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Do the main job once: simulate wafers, generate more, teach, publish, classify over gRPC.

    Ends with one JSON line on standard output; the exit code says whether it worked.
    """
    output = Output(as_json)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="teachwafer-demo-") as folder:
        reach = Reach(home, local) if keep or home else Reach(Path(folder), local=True)
        try:
            result = asyncio.run(_demo(output, reach, epochs))
        except TeachwaferError as error:
            output.result({"ok": False, "error": error.message, "reason": error.reason}, always=True)
            raise
    output.result({"ok": True, **result, "seconds": round(time.monotonic() - started, 1)}, always=True)


async def _demo(output: Output, reach: Reach, epochs: int) -> dict[str, Any]:
    """Does it."""
    store = open_store(reach.settings().resolved_store_url)
    async with reach.services(output, "generator", "trainer", "predictor") as session:
        output.say(f"1. Simulating {len(PATTERNS)} classes of {WAFERS} wafers")
        taught = await _simulate(session, SEED, WAFERS)
        frozen = freeze(store, taught, hold_back=True, seed=SEED)
        show_frozen(output, taught, frozen)

        output.say("2. Generating more wafers of the smallest classes")
        wanted = [GenerationRequest(class_id(name), GENERATED) for name in ("Donut", "Scratch")]
        generated = await make_more(session, output, frozen, wanted, seed=SEED, name=MODEL)
        show_generation(output, generated, frozen)
        parts = (generated.result.dataset_id,) if generated.result else ()

        output.say("3. Teaching")
        options = TrainingOptions(epochs=epochs, seed=SEED)
        ended = await teach(session, output, frozen, options, parts, name=MODEL)

        output.say("4. Publishing and loading")
        version = await publish_model(session, output, ended, MODEL)
        await make_ready(session, MODEL)

        output.say("5. Classifying wafers of lots that the model has never seen, over gRPC")
        fresh = await _simulate(session, SEED + 1, WAFERS // 2)
        answered, answers = await ask(session, fresh, MODEL)
        evaluation, _ = measure(fresh, answers)
        show_evaluation(output, f"{MODEL}:{answered} on new wafers", evaluation)
    if evaluation.accuracy < LEAST_ACCURACY:
        raise InternalError(
            f"Expected at least {LEAST_ACCURACY:.0%} of the new wafers right. Received: {evaluation.accuracy:.0%}. "
            "Something in the chain from simulation to answer is broken.",
            reason="DEMO_ACCURACY",
        )
    return _told(frozen, generated.run_id, ended.run_id, version) | {"evaluation": evaluation_json(evaluation)}


async def _simulate(session: Session, seed: int, count: int) -> TaughtWafers:
    """Returns simulated wafers of every class."""
    taught = TaughtWafers()
    classes = [((name,), count) for name in PATTERNS]
    wafers = session.clients.generator.simulate(classes, seed=seed, wafers_per_lot=WAFERS_PER_LOT)
    async for index, wafer in wafers:
        taught.add(wafer.dies, PATTERNS[index], wafer.identity.lot)
    return taught


def _told(frozen: Frozen, generation: str, training: str, version: int) -> dict[str, Any]:
    """Returns the names of everything that was made."""
    return {
        "dataset_version": f"datasetVersions/{frozen.dataset_id}",
        "generation_job": f"generationJobs/{generation}",
        "training_job": f"trainingJobs/{training}",
        "model": MODEL,
        "version": version,
    }
