"""Resource names and page tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgumentError
from services.common.pagination import decode_page_token, encode_page_token, page_size_of
from services.common.resource_names import DatasetVersionName, TrainingJobName, check_id

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@given(IDS)
def test_names_round_trip(identifier):
    assert TrainingJobName.parse(str(TrainingJobName(identifier))) == TrainingJobName(identifier)


@pytest.mark.parametrize(
    "name", ["", "x", "trainingJobs/", "trainingJobs/..", "trainingJobs/a/b", "generationJobs/a", "trainingJobs/a\n"]
)
def test_other_names_are_refused_with_the_field(name):
    with pytest.raises(InvalidArgumentError, match=r"Expected trainingJobs/\{id\}") as caught:
        TrainingJobName.parse(name, "training_job")
    assert caught.value.field == "training_job"


@pytest.mark.parametrize("identifier", ["", ".", "..", "-a", "a/b", "a b", "\u00e4", "a" * 129])
def test_ids_that_are_no_file_names_are_refused(identifier):
    with pytest.raises(InvalidArgumentError):
        DatasetVersionName(identifier)
    with pytest.raises(InvalidArgumentError):
        check_id(identifier, "model_id")


def test_page_sizes():
    assert [page_size_of(size) for size in (0, 1, 1000, 5000)] == [50, 1, 1000, 1000]
    with pytest.raises(InvalidArgumentError, match="Received: -1"):
        page_size_of(-1)


@given(st.lists(st.one_of(st.text(), st.integers()), max_size=4))
def test_page_tokens_round_trip(cursor):
    assert decode_page_token("jobs", encode_page_token("jobs", cursor)) == cursor


@given(st.text(max_size=50).filter(bool))
def test_any_other_text_is_refused(token):
    with pytest.raises(InvalidArgumentError):
        decode_page_token("jobs", token)


def test_a_token_of_another_list_is_refused_and_no_token_is_the_first_page():
    assert decode_page_token("jobs", "") is None
    with pytest.raises(InvalidArgumentError, match="of this list"):
        decode_page_token("models", encode_page_token("jobs", [1]))
