"""The reference of what can be imported, made from docstrings: mkdocstrings fills these pages in."""

from importlib import import_module

# What each page says first, and what it describes: the names that a package gives on first use, or names with
# where they are written.
PACKAGES: dict[str, tuple[str, dict[str, str] | None]] = {
    "zoo": (
        "The public face: importing it loads neither torch nor transformers; the first use of a name does. "
        "`zoo.Config` is [`ZooConfig`](configuration_zoo.md).",
        None,
    ),
    "conversion": ("Checkpoints in and out; `convert`, `load` and `ConversionError` are those of [zoo](zoo.md).", None),
    "configuration_zoo": (
        "What a model is. All fields: [flags](../flags.md).",
        {
            name: f"configuration_zoo.configuration_zoo.{name}"
            for name in ("ZooConfig", "ZooConfig.preset", "ZooConfig.advice")
        },
    ),
    "modeling_zoo": (
        "The model, registered with transformers' Auto classes when `modeling_zoo` is imported.",
        {
            "ZooModel": "modeling_zoo.modeling_zoo.ZooModel",
            "ZooForCausalLM": "modeling_zoo.modeling_zoo.ZooForCausalLM",
            "lora_targets": "modeling_zoo.platform_peft.lora_targets",
            "get_decay_parameter_names": "modeling_zoo.train_weight_decay.get_decay_parameter_names",
            "parameter_groups": "modeling_zoo.train_weight_decay.parameter_groups",
        },
    ),
    "description_zoo": (
        "What a model costs and looks like, counted on the meta device.",
        {
            "measure": "description_zoo.measure.measure",
            "cache_totals": "description_zoo.measure.cache_totals",
            "flops": "description_zoo.flops.flops",
            "compute_costs": "description_zoo.costs.compute_costs",
            "training_memory": "description_zoo.training_memory.training_memory",
            "difference": "description_zoo.difference.difference",
            "architecture_svg": "description_zoo.picture.architecture_svg",
            "flags": "description_zoo.flags.flags",
        },
    ),
    "zoo.surgery": ("Changing the architecture of a trained model; see [surgery](../surgery.md).", None),
    "zoo.training": ("Training; see [train and fine-tune](../training.md).", None),
}


def api_page(package: str) -> str:
    """Markdown with an entry for each name."""
    said, given = PACKAGES[package]
    names = homes(package) if given is None else given
    entries = [entry(package, name, home) for name, home in names.items()]
    return "\n\n".join([f"# {package}", said, *entries]) + "\n"


def homes(package: str) -> dict[str, str]:
    """{name: where it is written} of what a package gives on first use, without what another page has."""
    found, elsewhere = {}, {"Config"} if package == "zoo" else {"ConversionError", "convert", "load"}
    for name in import_module(package).__all__:
        thing = getattr(import_module(package), name)
        if getattr(thing, "__module__", None) and not name.startswith("_") and name not in elsewhere:
            found[name] = f"{thing.__module__}.{thing.__name__}"
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def entry(package: str, name: str, home: str) -> str:
    """One function or class; of a class no members, of which transformers' have hundreds."""
    settings = {"heading": f"{package}.{name}", "toc_label": name, "members": "false"}
    lines = "\n".join(f"      {key}: {value}" for key, value in settings.items())
    return f"::: {home}\n    options:\n{lines}"
