"""Words that two packages must share although neither may import the other."""

from cli.jobs import JobState
from client.calotype import TERMINAL_STATES, JobParameters
from client.calotype import __version__ as client_version
from engine.determinism import DETERMINISM_LEVELS as ENGINE_PROMISES
from storage.states import State
from web.api.schemas import JobRequest
from web.app import VERSION
from web.estimates.determinism import DETERMINISM_LEVELS as WEB_PROMISES
from web.estimates.determinism import UNKEPT


def test_the_web_ranks_the_engines_promises_weakest_first() -> None:
    assert ENGINE_PROMISES[::-1] == WEB_PROMISES
    assert ENGINE_PROMISES[-1] == UNKEPT


def test_the_client_and_the_server_have_one_version() -> None:
    assert client_version == VERSION


def test_the_client_and_storage_agree_on_what_is_final() -> None:
    assert {State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED} == TERMINAL_STATES


def test_the_command_line_and_storage_agree_on_the_states() -> None:
    assert {state.value for state in JobState} == {state.value for state in State}


def test_the_client_and_the_api_agree_on_the_parameters_of_a_job() -> None:
    assert JobParameters.__annotations__.keys() | {"prompt"} == JobRequest.model_fields.keys()
