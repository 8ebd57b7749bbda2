"""Who sends a request is told, where the field is described, what some numbers of steps leave."""

from settings import ROOT
from web.api.schemas import JobRequest


def test_E9_the_field_and_its_reference_say_what_a_number_of_steps_may_leave() -> None:
    described = str(JobRequest.model_fields["num_inference_steps"].description)
    reference = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for text in (described, reference, (ROOT / "docs/reference/openapi.json").read_text(encoding="utf-8")):
        assert "that does not divide 1000 may leave a little noise" in text
