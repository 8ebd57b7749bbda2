"""Words that two packages must share although neither may import the other."""

from catalogue.states import State
from client.calotype import TERMINAL_STATES, JobParameters
from client.calotype import __version__ as client_version
from web.api.schemas import JobRequest
from web.app import VERSION


def test_the_client_and_the_server_have_one_version() -> None:
    assert client_version == VERSION


def test_the_client_and_storage_agree_on_what_is_final() -> None:
    assert {State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED} == TERMINAL_STATES


def test_the_client_and_the_api_agree_on_the_parameters_of_a_job() -> None:
    assert JobParameters.__annotations__.keys() | {"prompt"} == JobRequest.model_fields.keys()
