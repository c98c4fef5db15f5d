"""Uploads: looked at first, stored only when the person says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from sqlalchemy import Connection

from gateway.catalogue import changes, classes, imports, people, projects, wafers
from gateway.catalogue.names import name_key
from gateway.catalogue.patterns import guess_pattern, label_parts
from gateway.catalogue.wafer_rows import NewWafer
from gateway.studio.desk import Desk
from gateway.studio.disk import disk_errors
from gateway.studio.intake import Intake, ReadWafer, check_limits, read_files
from gateway.studio.people import current_person
from gateway.studio.staging import Staged, Staging, original_key
from gateway.values import (
    Assignment,
    ExampleMap,
    ImportDone,
    ImportPreview,
    InOtherClass,
    LabelGroup,
    Task,
    UploadFile,
    WaferClass,
)
from services.common.dataset import Origin
from services.common.errors import NotFoundError
from services.common.files import file_sha256

_DONE: TypeAdapter[ImportDone] = TypeAdapter(ImportDone)
_MAX_SKIPPED = 200
_MAX_WARNINGS = 20
_EXAMPLES = 3


class UploadsRoom:
    """Files on their way into a class."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._staging = Staging(desk.settings.home / "imports")

    async def stage(self, project_id: str, files: Sequence[UploadFile], *, class_id: str = "") -> ImportPreview:
        """Reads files and says what they hold. Nothing is stored in the project.

        Args:
            project_id: Project that they shall go to.
            files: The files. A folder in the name of a loose file is its label, as in a zip. In a project with several
                patterns per wafer `Center+Scratch` means both classes.
            class_id: Class that all wafers go to, as when dropped on its card; "" goes by their labels.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: There is no file, or too many (reason TOO_MANY_FILES).
            ResourceExhaustedError: A file is larger than allowed (reason UPLOAD_TOO_LARGE).
        """

        def check(connection: Connection) -> None:
            projects.get(connection, project_id)
            if class_id and classes.get(connection, class_id).project_id != project_id:
                raise NotFoundError("class", class_id[:80], reason="CLASS_NOT_FOUND")

        await self._desk.read(check)
        await asyncio.to_thread(check_limits, files, self._desk.settings)
        staged = await asyncio.to_thread(self._staging.put, project_id, class_id, files)
        try:
            return await self.preview(staged.import_id)
        except BaseException:
            await asyncio.to_thread(self._staging.remove, staged.import_id)
            raise

    async def preview(self, import_id: str) -> ImportPreview:
        """Returns what `stage` returned.

        Raises:
            NotFoundError: It was added, discarded or is too old.
        """
        staged = await asyncio.to_thread(self._staging.get, import_id)
        intake = await asyncio.to_thread(read_files, staged.files, self._desk.settings)
        return await self._desk.read(lambda connection: _preview(connection, staged, intake))

    async def commit(
        self,
        import_id: str,
        *,
        class_id: str = "",
        assignments: Mapping[str, Assignment] | None = None,
        keep_duplicates: bool = False,
    ) -> ImportDone:
        """Adds the wafers of an upload: all of them or, on an error, none. The original files are kept.

        Args:
            import_id: Token of the preview. A second commit returns what the first one did.
            class_id: Class that all wafers go to; "" goes by label.
            assignments: Where the wafers of a label go; labels that are not named go where the preview says.
            keep_duplicates: Whether wafers whose dies are there already are added, too.

        Raises:
            NotFoundError: The upload, the project or a class is gone.
            AlreadyExistsError: The name of a new class is taken (reason CLASS_NAME_TAKEN).
        """
        done = await self._done(import_id)
        if done is not None:
            return done
        try:
            return await self._add(import_id, class_id, dict(assignments or {}), keep_duplicates)
        except NotFoundError:
            # The files may be gone because another commit was quicker by a moment.
            done = await self._done(import_id)
            if done is None:
                raise
            return done

    async def discard(self, import_id: str) -> None:
        """Forgets an upload; nothing happens when it is gone already."""
        await asyncio.to_thread(self._staging.remove, import_id)

    async def _add(
        self, import_id: str, class_id: str, assignments: dict[str, Assignment], keep_duplicates: bool
    ) -> ImportDone:
        staged = await asyncio.to_thread(self._staging.get, import_id)
        intake = await asyncio.to_thread(read_files, staged.files, self._desk.settings)
        # The originals go first: should this process die now, unused files lie in the store and nothing else.
        originals = await asyncio.to_thread(self._originals, staged, intake)
        await asyncio.to_thread(self._keep, staged, originals)
        plan = _Plan(staged, intake, originals, class_id or staged.class_id, assignments, keep_duplicates)
        person = current_person()
        result = await self._desk.write(lambda connection: _commit(connection, plan, person))
        # Once more, should the last project that used one of them have been purged just before.
        await asyncio.to_thread(self._keep, staged, originals)
        await asyncio.to_thread(self._staging.remove, import_id)
        return result

    async def _done(self, import_id: str) -> ImportDone | None:
        """Returns what adding the upload did, or None."""
        done = await self._desk.read(lambda connection: imports.result(connection, import_id))
        return None if done is None else _DONE.validate_python(done)

    def _originals(self, staged: Staged, intake: Intake) -> dict[int, str]:
        """Returns the content addresses of the files that hold wafers, by position."""
        with disk_errors("the upload"):
            return {each: file_sha256(staged.path(each)) for each in {wafer.file for wafer in intake.wafers}}

    def _keep(self, staged: Staged, originals: dict[int, str]) -> None:
        """Puts files into the store by content, unless they are there."""
        for position, digest in originals.items():
            self._desk.store.put_if_absent(original_key(digest), staged.path(position))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be added.

    Attributes:
        staged: The upload.
        intake: What it holds.
        originals: Content address of each file, by position.
        class_id: Class that everything goes to, or "".
        assignments: Where the wafers of a label go.
        keep_duplicates: Whether wafers that are there already are added, too.
    """

    staged: Staged
    intake: Intake
    originals: dict[int, str]
    class_id: str
    assignments: dict[str, Assignment]
    keep_duplicates: bool


def _preview(connection: Connection, staged: Staged, intake: Intake) -> ImportPreview:
    """Says what an upload holds."""
    present = classes.live(connection, staged.project_id)
    several = projects.get(connection, staged.project_id).task is Task.SEVERAL
    digests = [wafer.map.sha256() for wafer in intake.wafers]
    held = wafers.holders(connection, staged.project_id, digests)
    first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    repeated = sum(first[digest] != index for index, digest in enumerate(digests))
    fresh = [
        w
        for index, (w, d) in enumerate(zip(intake.wafers, digests, strict=True))
        if first[d] == index and d not in held
    ]
    in_classes = Counter(class_id for digest in first if digest in held for class_id in held[digest])
    names = {each.class_id: each.name for each in present}
    return ImportPreview(
        import_id=staged.import_id,
        project_id=staged.project_id,
        files=len(staged.files),
        formats=tuple(intake.formats),
        read=len(intake.wafers),
        new=len(fresh),
        duplicates=repeated,
        already=tuple(InOtherClass(each, names.get(each, ""), count) for each, count in in_classes.most_common()),
        guessed_geometry=sum(wafer.guessed for wafer in fresh),
        lot_missing=sum(not wafer.map.identity.lot for wafer in fresh),
        skipped=tuple(intake.skipped[:_MAX_SKIPPED]),
        skipped_count=len(intake.skipped),
        labels=_labels(fresh, present, staged.class_id, several),
        examples=tuple(ExampleMap(w.map, w.label, w.source_name) for w in _examples(fresh or intake.wafers)),
        warnings=tuple(intake.warnings)[:_MAX_WARNINGS],
    )


def _labels(
    fresh: Sequence[ReadWafer], present: Sequence[WaferClass], class_id: str, several: bool
) -> tuple[LabelGroup, ...]:
    """Groups wafers by label, and says where each group goes unless told otherwise."""
    groups = []
    for label, count in Counter(wafer.label for wafer in fresh).most_common():
        first, *rest = label_parts(label) if several and not class_id else (label,)
        pattern = guess_pattern(first)
        target = next((each for each in present if each.class_id == class_id), None)
        if target is None and not class_id:
            target = _class_of_label(first, pattern, present)
        further = [(_class_of_label(each, guess_pattern(each), present), each) for each in rest]
        also = tuple(found.name if found else name for found, name in further)
        if target is not None:
            groups.append(LabelGroup(label, count, target.class_id, target.name, pattern, also))
        else:
            groups.append(LabelGroup(label, count, "", first or classes.free_name(present), pattern, also))
    return tuple(groups)


def _class_of_label(label: str, pattern: str, present: Sequence[WaferClass]) -> WaferClass | None:
    """Returns the class that a label means: by name, else by pattern."""
    by_name = next((each for each in present if label and name_key(each.name) == name_key(label)), None)
    return by_name or next((each for each in present if pattern and each.pattern == pattern), None)


def _examples(found: Sequence[ReadWafer]) -> list[ReadWafer]:
    """Returns up to three wafers: of different labels first, else spread over the upload."""
    by_label: dict[str, ReadWafer] = {}
    for wafer in found:
        by_label.setdefault(wafer.label, wafer)
    chosen = list(by_label.values())[:_EXAMPLES]
    spread = [found[round(step * (len(found) - 1) / 2)] for step in range(_EXAMPLES)] if found else []
    for wafer in spread:
        if len(chosen) < _EXAMPLES and all(wafer is not each for each in chosen):
            chosen.append(wafer)
    return chosen


def _commit(connection: Connection, plan: _Plan, person: str) -> ImportDone:
    """Adds the wafers of an upload in one transaction."""
    staged = plan.staged
    projects.lock(connection, staged.project_id)
    done = imports.result(connection, staged.import_id)
    if done is not None:
        return _DONE.validate_python(done)
    change, number = changes.record(connection, staged.project_id, "add_wafers", person, {"count": 0})
    chosen = list(_chosen(connection, plan))
    targets, new_classes = _targets(connection, plan, [wafer.label for wafer in chosen])
    new = [
        NewWafer(
            wafer.map,
            targets[wafer.label][0],
            Origin.UPLOADED,
            source_name=wafer.source_name,
            source_sha256=plan.originals[wafer.file],
            also=targets[wafer.label][1:],
        )
        for wafer in chosen
        if targets[wafer.label]
    ]
    added = wafers.insert_all(connection, staged.project_id, new, number)
    params: dict[str, str | int] = {"count": len(new), "class_ids": " ".join(new_classes)}
    if len(added) == 1:
        params["name"] = classes.get(connection, next(iter(added))).name
    change = changes.reword(connection, number, params)
    left_out = len(plan.intake.wafers) - len(new)
    result = ImportDone(added, tuple(new_classes), left_out, change if new else None)
    imports.add(
        connection,
        staged.import_id,
        staged.project_id,
        change.change_id,
        _DONE.dump_python(result, mode="json"),
        person,
    )
    people.log(connection, person, "wafers.import", f"projects/{staged.project_id}", {"count": len(new)})
    return result


def _chosen(connection: Connection, plan: _Plan) -> Iterator[ReadWafer]:
    """Yields the wafers to be added: each only once, unless duplicates are kept."""
    if plan.keep_duplicates:
        yield from plan.intake.wafers
        return
    digests = [wafer.map.sha256() for wafer in plan.intake.wafers]
    seen = set(wafers.holders(connection, plan.staged.project_id, digests))
    for wafer, digest in zip(plan.intake.wafers, digests, strict=True):
        if digest not in seen:
            seen.add(digest)
            yield wafer


def _targets(
    connection: Connection, plan: _Plan, labels: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Returns the class ids of each label, () for labels that are left out, and the ids of classes made for them."""
    several = projects.get(connection, plan.staged.project_id).task is Task.SEVERAL
    targets: dict[str, tuple[str, ...]] = {}
    made: list[str] = []
    for label in dict.fromkeys(labels):
        assignment = plan.assignments.get(label)
        parts: Sequence[str] = (label,)
        if assignment is None and not plan.class_id and several:
            parts = label_parts(label)
        found = [_target(connection, plan, part, assignment, made) for part in parts]
        targets[label] = tuple(dict.fromkeys(each for each in found if each))
    return targets, made


def _target(connection: Connection, plan: _Plan, label: str, assignment: Assignment | None, made: list[str]) -> str:
    """Returns the class id of one class of a label, "" when it is left out; a class that is made joins `made`."""
    project_id = plan.staged.project_id
    present = classes.live(connection, project_id)
    if assignment is None:
        known = _class_of_label(label, guess_pattern(label), present)
        class_id = plan.class_id or (known.class_id if known else "")
        assignment = Assignment(class_id, "" if class_id else label or classes.free_name(present))
    if assignment.class_id and assignment.class_id not in {each.class_id for each in present}:
        raise NotFoundError("class", assignment.class_id[:80], reason="CLASS_NOT_FOUND")
    if assignment.class_id or not assignment.new_name:
        return assignment.class_id
    # Two labels may be sent to the same new class.
    key = name_key(assignment.new_name)
    same = next((each for each in present if each.class_id in made and name_key(each.name) == key), None)
    if same is None:
        same = classes.add(connection, project_id, assignment.new_name, None)
        made.append(same.class_id)
    return same.class_id
