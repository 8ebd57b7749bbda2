"""The descriptions of `num_inference_steps` say that some numbers of steps leave noise in an image."""

from settings import ROOT
from web.api.schemas import JobRequest


def test_E9_the_field_and_its_reference_say_that_some_numbers_of_steps_leave_noise() -> None:
    described = str(JobRequest.model_fields["num_inference_steps"].description)
    reference = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for text in (described, reference, (ROOT / "docs/reference/openapi.json").read_text(encoding="utf-8")):
        assert "that does not divide 1000 may leave a little noise" in text
