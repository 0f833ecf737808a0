"""A recipe: one frozen section for each stage, read from TOML; `--set section.key=value` overrides a key.

`Config.digest` covers every field that can change a result: not where a run works, and of an endpoint only its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from internalize.errors import ConfigError, did_you_mean
from internalize.records import Granularity, Pattern, content_hash

from . import overrides
from .compute import ComputeConfig, moved
from .distill import DistillConfig
from .endpoint import EndpointConfig
from .model import ModelConfig
from .redact import RedactConfig
from .regime import Section, listed
from .serve import ServeConfig

Count = Annotated[int, Field(ge=1, le=100_000)]
_SHAPING = ("model", "answer_tokens", "body")  # fields of an endpoint that can change its answers
# Keys that came later, with values under which everything is as before, so that a run that did not know them goes on.
_AS_BEFORE: dict[str, tuple[tuple[str, JsonValue], ...]] = {
    "model": (("quantize", "none"),),
    "rollout": (("order", "shuffled"),),
    "extract": (("independent", 1),),
    "distill": (("own", False),),
    "evaluate": (("at", []),),
    "gate": (("most", 200), ("error", 0.05)),
}


class EnvConfig(Section):
    """Where tasks come from."""

    name: str = Field("docs", description="Name of a registered environment.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="Keyword options of the environment.")


class RolloutConfig(Section):
    """The episodes of the policy without experience, from which new experience is extracted."""

    split: str = Field("train", description="Split of the environment that training tasks come from.")
    order: Literal["shuffled", "given"] = Field(
        "shuffled", description="How training tasks come: 'shuffled' by the seed, or as the environment gives them."
    )
    tasks: Count = Field(48, description="Tasks an iteration, drawn without repetition while the split lasts.")
    attempts: int = Field(2, ge=1, le=64, description="Episodes a task.")
    max_steps: int = Field(9, ge=1, le=1000, description="Decisions before an episode is cut off.")
    max_action_tokens: int = Field(48, ge=1, le=8192, description="Longest action, tokens.")
    max_thinking_tokens: int = Field(
        0,
        ge=0,
        le=131_072,
        description="Longest thought before an action, tokens; then it is closed. 0 = it counts as action.",
    )
    temperature: float = Field(1.0, ge=0, le=2, description="Sampling temperature; 0 = greedy.")
    require_success: bool = Field(default=True, description="Whether a run ends if its first rollouts teach nothing.")

    @property
    def max_turn_tokens(self) -> int:
        """The longest turn: its thought and its action."""
        return self.max_thinking_tokens + self.max_action_tokens


class ExtractConfig(Section):
    """How trajectories become experience."""

    granularity: Granularity = Field("principle", description="'principle' (rules) or 'instance' (worked examples).")
    source: Literal["contrast", "self", "external"] = Field(
        "contrast", description="Who writes: 'contrast' (no language model), 'self' (the policy) or the endpoint."
    )
    endpoint: str = Field("", description="Name of the endpoint that writes when source is 'external'.")
    groups: Literal["mixed", "all"] = Field("mixed", description="Tasks a language model reads: won and lost, or all.")
    per_task: int = Field(3, ge=1, le=20, description="Most items a language model may propose for one task.")
    words: int = Field(32, ge=4, le=500, description="Longest item of a language model, words.")
    context: int = Field(8192, ge=512, le=10_000_000, description="Tokens of a request to the writer and its answer.")
    cap: int = Field(50, ge=1, le=10_000, description="Most items in the pool.")
    add: int = Field(8, ge=1, le=1000, description="Most items added in one iteration.")
    window: int = Field(3, ge=1, le=1000, description="Iterations whose episodes are evidence, this one included.")
    min_support: int = Field(4, ge=1, description="Decisions that must back an item.")
    min_lift: float = Field(0.15, ge=0, le=1, description="Least gain in success rate when the item is followed.")
    max_p: float = Field(0.02, gt=0, le=1, description="Largest one-sided p of a rule's lift to add or keep the rule.")
    within: bool = Field(
        default=False, description="Whether a rule must also hold among episodes that saw the same, page by page."
    )
    independent: int = Field(
        1, ge=1, le=8, description="Hosts, or pages where there are no hosts, that must back a new item; 1 = no demand."
    )
    planted: float = Field(0.0, ge=0, le=0.9, description="Share of new rules planted: the worst, for experiments.")
    retire: bool = Field(default=False, description="Whether items that measurably harm are deleted for good.")


class InjectConfig(Section):
    """Which experience the policy sees, and where in the prompt."""

    pattern: Pattern = Field("stepwise", description="'none', 'global' (system message) or 'stepwise' (last message).")
    selector: Literal["lexical", "llm", "embedding"] = Field("lexical", description="Who picks items at a step.")
    endpoint: str = Field("self", description="Who selects when selector is 'llm': 'self' (the policy) or an endpoint.")
    embedder: str = Field("", description="Sentence-transformers model of 'embedding'; '' = the packaged MiniLM.")
    k: int = Field(2, ge=1, le=8, description="Most items a step.")
    shown: str = Field(
        "",
        description="For experiments: 'shuffled' shows the pool's rules with each other's actions, a file that pool; "
        "'' = the run's own pool.",
    )


class SuiteConfig(Section):
    """A further suite, as [evaluate.further.NAME], to find out whether the policy forgets earlier skills."""

    env: EnvConfig = EnvConfig()
    split: str = Field("dev", description="Split of that environment.")
    tasks: Count = Field(24, description="Tasks of that split.")


class EvaluateConfig(Section):
    """The measurements after every iteration."""

    split: str = Field("dev", description="Suite measured at every iteration.")
    at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Iterations after which it is measured, besides the last; () = all."
    )
    tasks: Count = Field(48, description="Tasks of that suite.")
    final_splits: tuple[str, ...] = Field(
        ("test",), description="Suites only for the starter and the final policy; they share no task with `split`."
    )
    final_tasks: Count = Field(48, description="Tasks of each final suite.")
    further: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], SuiteConfig] = Field(
        default_factory=dict, description="Suites measured without experience after every kept iteration."
    )
    attempts: int = Field(1, ge=1, le=64, description="Episodes a task.")
    drift: int = Field(8, ge=0, le=10_000, description="Episodes on which drift is measured; 0 = none.")
    resamples: int = Field(2000, ge=100, le=1_000_000, description="Bootstrap resamples for intervals.")


class JudgeConfig(Section):
    """Who grades the answers that an environment cannot grade itself."""

    kind: Literal["exact", "maths", "model", "chain"] = Field("exact", description="The judge; 'chain' asks several.")
    chain: tuple[Literal["exact", "maths", "model"], ...] = Field(
        ("exact", "maths", "model"), min_length=1, description="What 'chain' asks in turn until one accepts."
    )
    endpoint: str = Field("", description="Who judges for 'model': an endpoint or 'self' (the policy); '' = nobody.")
    seconds: float = Field(5.0, gt=0, le=600, description="Time limit of one mathematical comparison.")
    units: Literal["optional", "required"] = Field("optional", description="Maths: whether 5 may stand for 5 cm.")
    percent: Literal["fraction", "number"] = Field("fraction", description="Maths: 50% is 0.5, or 50 as well.")
    order: Literal["any", "kept"] = Field("any", description="Maths: the order of a list without brackets (1, 2).")
    decimals: int = Field(6, ge=0, le=50, description="Maths: places a rounded decimal (0.333333) needs; 0 = never.")

    @property
    def asks_model(self) -> bool:
        """Whether a language model is asked."""
        return self.kind == "model" or (self.kind == "chain" and "model" in self.chain)


class GateConfig(Section):
    """Whether a new checkpoint is kept."""

    rule: Literal["always", "no_worse", "retry", "average", "confirm"] = Field(
        "always",
        description="'always' promotes; on a significant loss on dev 'no_worse' rolls back; 'retry' trains with a "
        "smaller step, 'average' takes the mean with the parent, and if that is worse too they roll back; 'confirm' "
        "plays further tasks wherever dev is lower, and rolls back if they show a loss.",
    )
    most: int = Field(200, ge=1, le=100_000, description="Further tasks of the split that 'confirm' plays at most.")
    error: float = Field(
        0.05, gt=0, lt=1, description="Highest chance that 'confirm' rolls back in a run that never gets worse."
    )
    against: Literal["parent", "best"] = Field("best", description="Whom a candidate must not be worse than.")
    shrink: float = Field(0.25, gt=0, lt=1, description="Learning rate of a retry, times distill.lr.")


class TrackConfig(Section):
    """Where else the metrics of a run go. This cannot change a result, so the digest leaves it out."""

    to: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = Field(
        (), description="Dashboards whose package is installed; 'wandb' works offline. () = none."
    )
    project: str = Field("internalize", pattern=r"^[\w.-]+$", description="Name that the dashboards group runs under.")

    _one = field_validator("to", mode="before")(listed)


class Config(Section):
    """A whole recipe."""

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of all random draws.")
    iterations: int = Field(3, ge=1, le=1000, description="K.")
    model: ModelConfig = ModelConfig()
    env: EnvConfig = EnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    extract: ExtractConfig = ExtractConfig()
    inject: InjectConfig = InjectConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    judge: JudgeConfig = JudgeConfig()
    redact: RedactConfig = RedactConfig()
    track: TrackConfig = TrackConfig()
    compute: ComputeConfig = ComputeConfig()
    serve: ServeConfig = ServeConfig()
    endpoints: dict[str, EndpointConfig] = Field(default_factory=dict, description="Servers by name.")

    @property
    def endpoints_used(self) -> dict[str, str]:
        """The keys that name a model to ask, each with its value: an endpoint or 'self', the policy."""
        names = {
            "extract.endpoint": self.extract.endpoint if self.extract.source == "external" else "self",
            "inject.endpoint": self.inject.endpoint if self.inject.selector == "llm" else "self",
            "model.endpoint": self.model.endpoint or "self",
            "compute.endpoint": (self.compute.engine in {"auto", "endpoint"} and self.compute.endpoint) or "self",
            "judge.endpoint": self.judge.endpoint if self.judge.asks_model else "self",
        }
        return {key: name for key, name in names.items() if name != "self"}

    @property
    def acting_endpoint(self) -> str:
        """The endpoint that acts in episodes; "" = an engine of this package."""
        used = self.endpoints_used
        return used.get("compute.endpoint", "") or used.get("model.endpoint", "")

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, data: Any) -> Any:
        return moved(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _compute_can_be_had(self) -> Config:
        compute, acts = self.compute, self.model.endpoint
        if compute.engine == "vllm" and compute.endpoint:
            raise ValueError(
                f"compute.engine = 'vllm' starts servers of its own, so compute.endpoint = {compute.endpoint!r} is idle"
            )
        if compute.engine == "endpoint" and not (compute.endpoint or acts):
            raise ValueError(
                "compute.engine = 'endpoint' needs compute.endpoint, which names a section [endpoints.NAME]"
            )
        if acts and compute.endpoint:
            raise ValueError(f"compute.endpoint = {compute.endpoint!r} and model.endpoint = {acts!r}: only one can act")
        if acts and compute.engine not in {"auto", "endpoint"}:
            raise ValueError(f"compute.engine = {compute.engine!r} excludes model.endpoint = {acts!r}, which acts")
        return self

    @model_validator(mode="after")
    def _quantized_weights_stay_as_they_are(self) -> Config:
        if conflict := self.model.conflict(self.distill.lora_r, self.compute.train):
            raise ValueError(conflict)
        return self

    @model_validator(mode="after")
    def _gate_has_measurements(self) -> Config:
        if self.evaluate.at and self.gate.rule != "always":
            raise ValueError(
                f"gate.rule = {self.gate.rule!r} decides after every iteration, and evaluate.at leaves some unmeasured"
            )
        return self

    def measures(self, k: int) -> bool:
        """Whether the policy is measured after iteration `k`; 0 = the starter."""
        return not self.evaluate.at or k in {0, self.iterations, *self.evaluate.at}

    @model_validator(mode="after")
    def _endpoints_are_named(self) -> Config:
        for key, name in {**self.endpoints_used, "serve.endpoint": self.serve.endpoint}.items():
            if (name or key != "serve.endpoint") and name not in self.endpoints:
                raise ValueError(f"{key} = {name!r} names no section [endpoints.{name or 'NAME'}]")
        return self

    @property
    def digest(self) -> str:
        """Content hash of every field that can change a result."""
        return content_hash(self.shaping)

    @property
    def shaping(self) -> dict[str, Any]:
        """Every field that can change a result, as plain JSON values."""
        return _shaping(self.dump())

    def dump(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return self.model_dump(mode="json")

    def changed_from(self, stored: dict[str, Any]) -> list[str]:
        """Dotted names of the fields that differ from a stored dump, which may have the flat layout."""
        distill = stored.get("distill")
        now = stored | {"distill": overrides.filled_in(distill)} if isinstance(distill, dict) else stored
        return changed_fields(_shaping(now), self.shaping)


def load_config(path: Path | str | None = None, overriding: Sequence[str] = ()) -> Config:
    """Read a recipe (None = all defaults) and apply `section.key=value` overrides, values in TOML.

    An algorithm among the overrides outranks the recipe's switches, and the other overrides outrank the algorithm.
    A table is set before its keys, in whatever order they are given. Raises ConfigError naming the file and the key.
    """
    data: dict[str, Any] = {}
    where = "defaults" if path is None else str(path)
    if path is not None:
        try:
            data = overrides.parse_toml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the recipe ({error.strerror})") from error
        except ValueError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return _overridden(data, overriding, where)


def override_config(config: Config, overriding: Sequence[str]) -> Config:
    """`config` with `section.key=value` overrides, as in `load_config`. Raises ConfigError naming the key."""
    return _overridden(config.dump(), overriding, "--set") if overriding else config


def _overridden(data: dict[str, Any], overriding: Sequence[str], where: str) -> Config:
    try:
        data = moved(data)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    for override in sorted(overriding, key=overrides.precedence):
        overrides.apply(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    """The first problem in one sentence that names the key."""
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")  # a misspelt key
    kind, message = first["type"], first["msg"]
    loc = [str(part) for part in first["loc"]]
    table = ""
    if loc[:1] == ["distill"] and len(loc) > 3:
        table = f"distill.{loc[1]} = {loc.pop(2)!r}"  # pydantic names the kind of a table after the table
    key = ".".join(loc)
    if not key or kind == "value_error":  # the sentence of a validator here names its keys
        return message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        unknown = f"{table} has no key {loc[-1]!r}" if table else f"unknown key {key}"
        return unknown + did_you_mean(loc[-1], _keys_of(loc[:-1]))
    if kind == "union_tag_invalid":
        return f"{key} = {first['ctx']['tag']!r}: should be one of {first['ctx']['expected_tags']}"
    if kind == "missing":
        return f"{key} is missing{table and f', which {table} needs'}"
    return f"{key} = {first['input']!r}: {message[0].lower()}{message[1:]}{table and f', under {table}'}"


def _keys_of(sections: Sequence[str]) -> list[str]:
    """The keys of a section of `Config`; empty if a key holds anything but one kind of section."""
    model: Any = Config
    for section in sections:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        else:
            field = getattr(model, "model_fields", {}).get(section)
            model = field.annotation if field else None
    return list(getattr(model, "model_fields", ()))


def _shaping(dump: dict[str, Any]) -> dict[str, Any]:
    """A dumped config without the fields that cannot change a result, such as trackers, [serve] and [compute].

    They may change on a resume: a budget may be raised, a server may move.
    """
    found = {key: value for key, value in moved(dump).items() if key not in {"track", "serve", "compute"}}
    named = {(found.get(section) or {}).get("endpoint") for section in ("model", "extract", "inject", "judge")}
    endpoints = {
        name: {key: value for key, value in endpoint.items() if key in _SHAPING and value}
        for name, endpoint in (dump.get("endpoints") or {}).items()
        if name in named
    }
    sections = {
        section: {key: value for key, value in held.items() if (key, value) not in _AS_BEFORE.get(section, ())}
        for section, held in found.items()
        if isinstance(held, dict)
    }
    sections["rollout"] = {k: v for k, v in sections.get("rollout", {}).items() if k != "require_success"}
    return found | sections | {"endpoints": endpoints}


def changed_fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields that differ between two dumped configs."""
    names = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += changed_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
