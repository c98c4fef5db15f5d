"""Uploads: looked at first, stored only when the person says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.values import Assignment, ImportDone, ImportPreview, UploadFile


class UploadsRoom:
    """Files on their way into a class."""

    async def stage(self, project_id: str, files: Sequence[UploadFile], *, class_id: str = "") -> ImportPreview:
        """Reads files and says what they hold. Nothing is stored in the project.

        Args:
            project_id: Project that they shall go to.
            files: The files. A folder in the name of a loose file is its label, as in a zip.
            class_id: Class that all wafers go to, as when dropped on its card; "" goes by their labels.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: There is no file, or too many (reason TOO_MANY_FILES).
            ResourceExhaustedError: A file is larger than allowed (reason UPLOAD_TOO_LARGE).
        """
        raise NotImplementedError

    async def preview(self, import_id: str) -> ImportPreview:
        """Returns what `stage` returned.

        Raises:
            NotFoundError: It was added, discarded or is too old.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    async def discard(self, import_id: str) -> None:
        """Forgets an upload; nothing happens when it is gone already."""
        raise NotImplementedError
