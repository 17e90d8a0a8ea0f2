"""What a model is and costs, from whatever names it: a folder, a config.json, a preset, a config."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.errors import UserError

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig


def inspect(model: Any, **wanted: Any) -> dict:
    """The report of `zoo inspect --json`: one entry per layer, then totals. No weight is allocated.

    `wanted`: the options of `reported`, `context=32768, batch=8`. `model`: a folder, a config.json, a repository of the
    Hub (`owner/name[@revision]`, of which config.json alone is fetched), the name of a preset, or a ZooConfig. Raises
    UserError, or ValueError with what is wrong.
    """
    from configuration_zoo import ZooConfig

    if isinstance(model, ZooConfig):
        return reported(model, **wanted)
    folder, raw = found(str(model))
    return reported(configured(str(model), folder, raw), **wanted) | around(raw) | stored(folder, raw)


def diff(one: Any, other: Any, context: int | None = None) -> dict:
    """What two models, named as for `inspect`, do not have in common: see `difference` of description_zoo.

    `context`: the number of tokens at which caches and operations are counted, None for as many as both can have.
    Raises UserError, or ValueError with what is wrong.
    """
    from configuration_zoo import ZooConfig
    from description_zoo.difference import difference

    models = one, other
    configs = tuple(model if isinstance(model, ZooConfig) else config_of(str(model)) for model in models)
    length = context or min(config.max_position_embeddings for config in configs)
    reports = reported(configs[0], context=length), reported(configs[1], context=length)
    return {"context": length} | difference(reports, configs)


def reported(
    config: "ZooConfig",
    context: int | None = None,
    batch: int = 1,
    tp: int = 1,
    ep: int = 1,
    gpu: str | None = None,
    gpus: int = 1,
    tokens: float | None = None,
    utilization: float = 0.4,
    optimizer: str | None = None,
) -> dict:
    """What a config's model is and costs: layers, parameters, cache and operations at a `context` (None: the longest)
    and a `batch`; with `tp` or `ep` what a rank holds, with `gpu` how fast it decodes, with `tokens` too how long
    `gpus` of them train, with `optimizer` the memory of a step of training. Raises UserError for ranks that the model
    does not divide into."""
    from description_zoo.costs import compute_costs, decoding_speed, training_time
    from description_zoo.measure import cache_totals, empty_model, measure

    from .cli.placement import place

    model = empty_model(config)
    report = measure(config, model)
    report["cache"] = cache_totals(report, context, batch)
    length = report["cache"]["context"]
    if max(tp, ep) > 1:
        report["placement"] = place(config, tp, ep, length, batch)
    report |= compute_costs(model, report)
    if gpu is not None:
        report["decoding"] = decoding_speed(report, gpu)
    if tokens is not None and gpu is not None:
        report["training_time"] = training_time(report, tokens, gpu, gpus, utilization)
    if optimizer is not None:
        from description_zoo.training_memory import training_memory

        report["training_memory"] = training_memory(config, length, batch, optimizer)
    return report


def config_of(model: str) -> "ZooConfig":
    """The ZooConfig of a folder, a config.json, a repository of the Hub or a preset; raises UserError, or ValueError
    with what is wrong."""
    return configured(model, *found(model))


def found(model: str) -> tuple[Path | None, dict | None]:
    """(the folder or GGUF file of a model, its config.json), read once: without a folder for a config.json alone or one
    of the Hub, without either for a preset. Raises UserError, or ValueError with what is wrong."""
    from configuration_zoo.presets import presets
    from conversion.files.hub import fetch_file, hub_id
    from conversion.files.sources import read_config_file

    from .cli.loading import read_config

    path = Path(model)
    if not path.exists() and model in presets():
        return None, None
    if path.is_dir() or path.suffix == ".gguf":
        return path, read_config(path)
    if path.is_file():
        return None, read_config_file(path)
    if wanted := hub_id(model):
        return None, read_config_file(fetch_file(wanted, "config.json"))
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{model} is neither a folder nor a file.")
    return None, None


def configured(model: str, folder: Path | None, raw: dict | None) -> "ZooConfig":
    """The ZooConfig of what `found` has; raises ValueError with what is wrong."""
    from configuration_zoo import ZooConfig
    from conversion.engine.config_bridge import import_config
    from conversion.engine.loading import config_of_folder

    if folder is not None:
        return config_of_folder(folder, raw)
    return ZooConfig.preset(model) if raw is None else import_config(unquantised(raw))


def around(raw: dict | None) -> dict:
    """`source_text_model_type`: of a model taken out of a larger one, or a config.json of that, what stands inside."""
    from conversion.engine.text_models import text_model_of

    inside = text_model_of((raw or {}).get("source_config") or raw or {})
    return {"source_text_model_type": inside[1] if inside else None}


def stored(folder: Path | None, raw: dict | None) -> dict:
    """How the weights of what `found` has are stored: `stored_as` and, of a folder with weights, `stored_bytes`; {}
    where nothing says it."""
    from conversion.formats.schemes import scheme_of
    from conversion.formats.storage import in_words, storage_of

    if folder is not None:
        return storage_of(folder, raw)
    scheme = scheme_of(raw or {})
    return {"stored_as": in_words(scheme)} if scheme else {}


def unquantised(raw: dict) -> dict:
    """A config without the packing of its weights: layers and caches are the same, weights are counted in its dtype."""
    return {key: value for key, value in raw.items() if key != "quantization_config"}
