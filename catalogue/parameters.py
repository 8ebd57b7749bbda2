"""The parameters of an image, declared once: `Parameters` and the type and limits of each.

Everything that passes on, checks, stores or shows a parameter reads its declaration here. How a job is run
(its model, tier, lane, deadline or webhook) is not a parameter; limits that depend on a model are in
`catalogue.catalogue`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import chain
from sys import float_info
from typing import Annotated, Any, Literal, TypeGuard, cast, get_type_hints

from pydantic import BaseModel, ConfigDict

MAX_SEED = 2**63 - 1
MAX_FLOAT = float_info.max
MAX_NUM_IMAGES = 4
MAX_PIXELS_A_SIDE = 2**31 - 1
MAX_INPUT_IMAGES = 8
"""How many files `image` may name; some edit models take several."""
MAX_LORAS = 8
MAX_LORA_SCALE = 4.0
OUTPUT_FORMATS = ("png", "webp", "jpeg")
FILE_ID = r"^file_[0-9a-f]{64}$"
"""The id of a file names its content: the SHA-256 of its bytes."""
ADAPTER_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"

Value = bool | int | float | str
ParameterType = Literal[
    "int", "float", "bool", "string", "choice", "text", "object", "file", "files", "adapters"
]
"""A string is a name, a text a prompt, a file the id of one of the account's files. An object holds the
parameters of one model, and adapters are named with their scales."""


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter, by its name in `calotype.toml`, and the scale at which it is applied."""

    name: str
    scale: float = 1.0

    def __str__(self) -> str:
        """The adapter as a CSV cell, with every digit of the scale: `outline:0.8`."""
        short = f"{self.scale:g}"
        return f"{self.name}:{short if float(short) == self.scale else repr(self.scale)}"


class Parameter(BaseModel):
    """The type, limits, unit and description of one parameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ParameterType
    description: str
    min: int | float | None = None
    max: int | float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""

    def fault_of(self, value: object) -> str | None:
        """Why the value is not valid, or None. The text names the limit and never the value."""
        match self.type:
            case "int" if type(value) is not int:
                return "is not a whole number"
            case "float" if (
                type(value) not in (int, float) or not -MAX_FLOAT <= cast("float", value) <= MAX_FLOAT
            ):
                return "is not a finite number"
            case "bool" if type(value) is not bool:
                return "is not true or false"
            case "choice" if value not in self.choices:
                return f"is not one of: {', '.join(self.choices)}"
            case "string" | "text" if not isinstance(value, str):
                return "is not a string"
            case "object" if not isinstance(value, Mapping):
                return "is not an object"
            case "file" if not is_file_id(value):
                return "is not the id of a file"
            case "files":
                return _fault_of_files(value)
            case "adapters":
                return _fault_of_loras(value)
            case "int" | "float":
                return self._bound_broken_by(cast("float", value))
        return None

    def _bound_broken_by(self, number: float) -> str | None:
        if self.min is not None and number < self.min:
            return f"is below {self.min}"
        if self.max is not None and number > self.max:
            return f"is above {self.max}"
        return None


def is_file_id(value: object) -> bool:
    """Whether this has the form of a file id; the file may not exist."""
    return isinstance(value, str) and re.fullmatch(FILE_ID, value) is not None


def _fault_of_files(value: object) -> str | None:
    if not _is_sequence(value) or not all(map(is_file_id, value)):
        return "is not a list of ids of files"
    return f"has more than {MAX_INPUT_IMAGES} files" if len(value) > MAX_INPUT_IMAGES else None


def _fault_of_loras(value: object) -> str | None:
    if not _is_sequence(value):
        return "is not a list"
    if len(value) > MAX_LORAS:
        return f"has more than {MAX_LORAS} adapters"
    loras = [one if isinstance(one, Lora) else _lora(one) for one in value]
    if not all(loras):
        return "has an entry that is not the name of an adapter with a scale"
    if any(lora and not -MAX_LORA_SCALE <= lora.scale <= MAX_LORA_SCALE for lora in loras):
        return f"has a scale outside {-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
    names = [lora.name for lora in loras if lora]
    return "names an adapter twice" if len(set(names)) < len(names) else None


def _lora(value: object) -> Lora | None:
    """The adapter that a JSON object describes, or None if it describes none."""
    if not isinstance(value, Mapping) or not {"name"} <= set(value) <= {"name", "scale"}:
        return None
    name, scale = value["name"], value.get("scale", 1.0)
    is_right = isinstance(name, str) and type(scale) in (int, float)
    return Lora(name, float(scale)) if is_right else None


def _is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


class KnownParameter(Parameter):
    """A parameter of every model."""

    examples: tuple[str, ...] = ()
    is_required: bool = False
    in_presets: bool = False
    """Whether a preset may set it."""
    changes_pixels: bool = True
    """Whether the pixels depend on it; other parameters change the file or the number of images."""
    in_estimates: bool = False
    """Whether estimates of waiting times read it from the jobs of all accounts."""
    is_mask: bool = False
    """Whether the file that it names is read as a mask."""
    option: str = ""
    """The name of its command-line option, if that is shorter than its own name."""
    note_of_value: str = ""
    """The description of the value in a job, if it differs from that in a request."""


class PipelineValues(Mapping[str, Value]):
    """The values of a model's own parameters by name; immutable and hashable."""

    def __init__(self, values: Mapping[str, Value] | Iterable[tuple[str, Value]] = ()) -> None:
        self._values = dict(sorted(dict(values).items()))

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"PipelineValues({self._values})"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All parameters of a job's images, with every default filled in.

    The model gives the default of a field that has none here, except the seed, which is random.
    """

    prompt: Annotated[
        str,
        KnownParameter(
            type="text",
            description="What to draw.",
            examples=("a red heart on a white background",),
            is_required=True,
        ),
    ]
    negative_prompt: Annotated[
        str, KnownParameter(type="text", option="negative", description="What to avoid.")
    ] = ""
    width: Annotated[
        int,
        KnownParameter(
            type="int",
            min=1,
            max=MAX_PIXELS_A_SIDE,
            unit="pixels",
            in_estimates=True,
            description="Pixels; the smallest tier's default if left out.",
        ),
    ]
    height: Annotated[
        int,
        KnownParameter(
            type="int",
            min=1,
            max=MAX_PIXELS_A_SIDE,
            unit="pixels",
            in_estimates=True,
            description="Pixels; the smallest tier's default if left out.",
        ),
    ]
    num_inference_steps: Annotated[
        int,
        KnownParameter(
            type="int",
            min=1,
            in_presets=True,
            option="steps",
            in_estimates=True,
            description="Denoising steps. "
            "With `ddim`, a number that does not divide 1000 may leave a little noise.",
        ),
    ]
    guidance_scale: Annotated[
        float,
        KnownParameter(
            type="float",
            min=0,
            in_presets=True,
            option="guidance",
            in_estimates=True,
            description="How closely to follow the prompt. 1 or less turns guidance off.",
        ),
    ]
    guidance_cutoff: Annotated[
        float,
        KnownParameter(
            type="float",
            min=0,
            max=1,
            in_presets=True,
            in_estimates=True,
            description="Fraction of the steps that are guided, from the first on; the others cost half. "
            "1 if left out.",
        ),
    ] = 1.0
    step_cache: Annotated[
        int,
        KnownParameter(
            type="int",
            min=1,
            in_presets=True,
            in_estimates=True,
            description="Interval between full steps, up to the model's `max_step_cache`; the cached steps "
            "between them reuse most of the model's work. 1 if left out, which turns the cache off.",
        ),
    ] = 1
    scheduler: Annotated[
        str,
        KnownParameter(
            type="string",
            in_presets=True,
            description="One of the model's schedulers; its first if left out.",
        ),
    ]
    seed: Annotated[
        int,
        KnownParameter(
            type="int",
            min=0,
            max=MAX_SEED,
            description="The same seed gives the same image. Random, below 2^32, if left out.",
        ),
    ]
    num_images: Annotated[
        int,
        KnownParameter(
            type="int",
            min=1,
            max=MAX_NUM_IMAGES,
            changes_pixels=False,
            in_estimates=True,
            description="Number of images; image i uses seed + i.",
        ),
    ] = 1
    output_format: Annotated[
        str,
        KnownParameter(
            type="choice",
            choices=OUTPUT_FORMATS,
            changes_pixels=False,
            option="format",
            description="A PNG is lossless, and so is a WebP without `output_quality`.",
            note_of_value="png, webp or jpeg",
        ),
    ] = "png"
    output_quality: Annotated[
        int | None,
        KnownParameter(
            type="int",
            min=1,
            max=100,
            changes_pixels=False,
            option="quality",
            description="Quality of a JPEG (90 if left out) or of a lossy WebP; a PNG has none.",
            note_of_value="Null for the format's default.",
        ),
    ] = None
    image: Annotated[
        tuple[str, ...],
        KnownParameter(
            type="files",
            description="The image to start from, or the images to edit.",
        ),
    ] = ()
    mask_image: Annotated[
        str | None,
        KnownParameter(
            type="file",
            is_mask=True,
            option="mask",
            description="Mask of `image`: white areas are redrawn, black areas are kept.",
        ),
    ] = None
    control_image: Annotated[
        str | None,
        KnownParameter(
            type="file", option="control", description="The image that the model's ControlNet follows."
        ),
    ] = None
    strength: Annotated[
        float | None,
        KnownParameter(
            type="float",
            min=0,
            max=1,
            in_presets=True,
            description="How much `image` is changed; 1 redraws all of it. The pipeline's own if left out.",
            note_of_value="Null for the pipeline's default.",
        ),
    ] = None
    loras: Annotated[
        tuple[Lora, ...],
        KnownParameter(
            type="adapters",
            in_presets=True,
            option="lora",
            description="Adapters to apply, each with its scale; `GET /v1/models` lists those of a model.",
        ),
    ] = ()
    strict: Annotated[
        bool,
        KnownParameter(
            type="bool",
            changes_pixels=False,
            in_estimates=True,
            description="Gives the same bytes as a run alone, at every determinism level; may take longer.",
        ),
    ] = False
    pipeline_parameters: Annotated[
        Mapping[str, Value],
        KnownParameter(
            type="object",
            in_presets=True,
            description="The model's own parameters by name; `GET /v1/models` lists them under `parameters`, "
            "with their types, limits and defaults.",
        ),
    ] = PipelineValues()

    def __post_init__(self) -> None:
        # JSON gives lists and dictionaries: make them immutable, and leave wrong values for `fault_of`.
        object.__setattr__(self, "pipeline_parameters", PipelineValues(self.pipeline_parameters))
        object.__setattr__(self, "image", tuple(self.image))
        object.__setattr__(self, "loras", tuple(_lora(one) or one for one in self.loras))

    def values(self) -> dict[str, Any]:
        """Every parameter by name, as JSON types."""
        own = {name: getattr(self, name) for name in PARAMETERS}
        return own | {
            "pipeline_parameters": dict(self.pipeline_parameters),
            "image": list(self.image),
            "loras": [asdict(lora) for lora in self.loras],
        }

    @property
    def file_ids(self) -> tuple[str, ...]:
        """The ids of the input images, without duplicates."""
        named = (entries_of(getattr(self, name)) for name in FILES)
        return tuple(dict.fromkeys(chain.from_iterable(named)))

    @property
    def needs_repeatable(self) -> bool:
        """Whether only a worker may draw it that gives the same image again."""
        return self.strict

    def seed_of(self, index: int) -> int:
        """The seed of image `index`: (seed + index) mod 2^63."""
        return (self.seed + index) % (MAX_SEED + 1)


def entries_of(value: Any) -> list[Any]:
    """The values of one of `FILES` as a list: several, one, or none for None."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]


def in_one_text(value: object) -> object:
    """A list of files or adapters as one CSV cell, `outline:0.8 ink:1`; other values as they are."""
    if not isinstance(value, list):
        return value
    return " ".join(str(Lora(**one)) if isinstance(one, dict) else one for one in value)


def _declared() -> dict[str, KnownParameter]:
    hints = get_type_hints(Parameters, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(Parameters)}


PARAMETERS: Mapping[str, KnownParameter] = _declared()
"""The declaration of each field of `Parameters`, in order."""
DEFAULTS: Mapping[str, Any] = {
    field.name: field.default for field in fields(Parameters) if field.default is not MISSING
}
"""The defaults of parameters whose default does not depend on the model."""
MAY_BE_NONE = frozenset(name for name, value in DEFAULTS.items() if value is None)
PRESET_PARAMETERS = tuple(name for name, parameter in PARAMETERS.items() if parameter.in_presets)
TEXTS = tuple(name for name, parameter in PARAMETERS.items() if parameter.type == "text")
"""The prompts."""
FILES = tuple(name for name, parameter in PARAMETERS.items() if parameter.type in ("file", "files"))
"""The input images."""
PRIVATE = (*TEXTS, "pipeline_parameters")
"""Parameters that may contain text written by users: webhooks and webhook senders never see them."""
