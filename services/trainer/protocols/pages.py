"""A page a protocol: kept results to Markdown. Every figure stands in a result; nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from services.trainer.protocols.markdown import Result
from services.trainer.protocols.pages_of_checks import generated_page, label_noise_page, unknown_page
from services.trainer.protocols.pages_of_scores import ablation_page, few_shot_page, full_page, several_page

PAGES: Mapping[str, Callable[[Sequence[Result]], str]] = {
    "full": full_page,
    "few-shot": few_shot_page,
    "several": several_page,
    "unknown": unknown_page,
    "generated": generated_page,
    "label-noise": label_noise_page,
    "ablation": ablation_page,
}
"""The page of each protocol, in the order of the report."""
