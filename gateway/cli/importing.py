"""`teachwafer import`: files into a project of the portal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.catalogue.names import name_key
from gateway.cli.options import Home, Json, Reach
from gateway.cli.output import Output
from gateway.values import ImportDone, ImportPreview, Project, Task, UploadFile
from services.common.errors import NotFoundError

if TYPE_CHECKING:
    from gateway.studio import Studio


def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of any supported format, or folders with one folder a class.", show_default=False),
    ],
    project: Annotated[str, typer.Option(help="Name of the project; made when missing.", show_default=False)],
    task: Annotated[
        Task,
        typer.Option(
            help="What a project that is made tells: single, several (labels join patterns with +), or normal."
        ),
    ] = Task.SINGLE,
    class_name: Annotated[
        str, typer.Option("--class", help="Class that all wafers go to. Default: by label or folder name.")
    ] = "",
    keep_duplicates: Annotated[bool, typer.Option(help="Add wafers whose dies are in the project already.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Add wafers from files to a project of the portal."""
    asyncio.run(_import(Output(as_json), Reach(home), files, project, task, class_name, keep_duplicates))


async def _import(
    output: Output, reach: Reach, files: list[Path], name: str, task: Task, class_name: str, keep_duplicates: bool
) -> None:
    """Stages, tells what is there, adds."""
    from gateway.studio import Studio  # SQLAlchemy and all; the other commands start faster without it

    uploads = [upload for path in files for upload in _uploads(path)]
    async with await Studio.open(reach.settings(), background=False) as studio:
        project = await _project(studio, output, name, task)
        class_id = await _class(studio, project, class_name) if class_name else ""
        preview = await studio.uploads.stage(project.project_id, uploads, class_id=class_id)
        done = await studio.uploads.commit(preview.import_id, keep_duplicates=keep_duplicates)
        names = {
            each.wafer_class.class_id: each.wafer_class.name
            for each in (await studio.projects.board(project.project_id)).cards
        }
    added = {names.get(each, each): count for each, count in done.added.items()}
    _show(output, preview, done, added)
    output.result(
        {
            "project": project.name,
            "project_id": project.project_id,
            "added": added,
            "left_out": done.left_out,
            "skipped": [{"name": each.name, "reason": each.message} for each in preview.skipped],
            "warnings": list(preview.warnings),
        }
    )


def _uploads(path: Path) -> list[UploadFile]:
    """Returns a file, or the files below a folder with their folder names, which are labels."""
    if not path.exists():
        raise NotFoundError("file or folder", str(path))
    if not path.is_dir():
        return [UploadFile(path.name, path)]
    found = sorted(each for each in path.rglob("*") if each.is_file())
    relative = [each.relative_to(path) for each in found]
    return [
        UploadFile(str(name), each)
        for name, each in zip(relative, found, strict=True)
        if not any(part.startswith(".") for part in name.parts)
    ]


async def _project(studio: Studio, output: Output, name: str, task: Task) -> Project:
    """Returns the project of a name, made when there is none."""
    for summary in await studio.projects.list():
        if name_key(summary.project.name) == name_key(name):
            return summary.project
    output.say(f"Making the project {name!r}.")
    return await studio.projects.create(name, task)


async def _class(studio: Studio, project: Project, name: str) -> str:
    """Returns the id of the class of a name, made when there is none."""
    board = await studio.projects.board(project.project_id)
    for card in board.cards:
        if name_key(card.wafer_class.name) == name_key(name):
            return card.wafer_class.class_id
    added, _ = await studio.classes.add(project.project_id, name)
    return added.class_id


def _show(output: Output, preview: ImportPreview, done: ImportDone, added: dict[str, int]) -> None:
    """Tells what was added and what not."""
    output.say(f"Read {preview.read} wafers ({', '.join(preview.formats) or 'no known format'}).")
    if added:
        output.table("Added", ("class", ">wafers"), added.items())
    if done.left_out:
        output.say(f"Left out {done.left_out} that are there already or repeat another one.")
    for sentence in preview.warnings:
        output.warn(sentence)
    if preview.skipped_count:
        lines = "\n".join(f"  {each.name}: {each.message}" for each in preview.skipped[:5])
        output.warn(f"{preview.skipped_count} entries could not be read:\n{lines}")
