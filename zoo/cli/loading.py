"""From a folder to a model: whose classes run it, and whether the folder's own code may."""

from pathlib import Path
from typing import TYPE_CHECKING

from conversion.command import quiet

from .errors import UserError, blamed_on

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_TYPE = "zoo"
HUB_HELP = "or a Hub id owner/name[@revision]"
TRUST_HELP = "Run the code in the folder. Not needed where zoo's installed classes run the model."
DTYPE_HELP = "auto (as stored), float32, bfloat16 or float16."
DEVICE_HELP = "Default: the accelerator if there is one."


def folder_of(model: str, trust: bool = False) -> Path:
    """The local folder of a folder or of a repository of the Hub, whose code is fetched only with `trust`. Raises
    ConversionError where there is none."""
    from conversion.files.sources import resolve_source

    return resolve_source(model, code=trust)


def read_config(folder: Path) -> dict:
    """config.json of a model folder; raises UserError or ConversionError."""
    from conversion.files import sources

    if not folder.is_dir() and folder.suffix != ".gguf":
        raise UserError(f"{folder} is not a folder.")
    return sources.read_config(folder)


def open_folder(folder: Path, trust: bool) -> dict:
    """Its config; a zoo folder will be run by the installed classes unless its own code is trusted."""
    quiet()
    config = read_config(folder)
    if config.get("model_type") == MODEL_TYPE and not trust:
        import modeling_zoo  # noqa: F401  (registers the classes)
    return config


def parse_dtype(name: str | None) -> "torch.dtype | str":
    """ "float32", "bfloat16", "float16" or "auto" (as the checkpoint is stored) -> what transformers takes. Raises
    UserError for any other name."""
    import torch

    if name in (None, "auto"):
        return "auto"
    if name not in ("bfloat16", "float16", "float32"):
        raise UserError(f"--dtype {name} is not one of auto, bfloat16, float16, float32.")
    return getattr(torch, name)


def load_model(
    folder: Path, dtype: str | None = None, device: str | None = None, trust: bool = False, original: bool = False
) -> "PreTrainedModel":
    """The model a folder holds, whole, in eval mode: what `architectures` says, usually a causal language model.

    zoo folder -> the installed zoo classes (its own code with `trust`). Foreign folder -> transformers' own class with
    `original`, else zoo's straight from the foreign files. Any other code of a folder needs `trust`. Raises
    ConversionError where the weights are not those of the model.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    import conversion

    config, dtype = open_folder(folder, trust), parse_dtype(dtype)
    own_code = bool(config.get("auto_map"))
    native = config.get("model_type") in CONFIG_MAPPING_NAMES
    if (trust and own_code) or (original and native):
        model = load_by_transformers(folder, config, dtype, trust)
    elif own_code and not native and config.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"{folder} has code of its own (auto_map in config.json): --trust-remote-code allows it to run."
        )
    else:
        with blamed_on(f"what {folder} says of its model"):
            model = conversion.load(folder, dtype=None if dtype == "auto" else dtype)
    return model.to(device or default_device()).eval()


def load_by_transformers(folder: Path, config: dict, dtype: "torch.dtype | str", trust: bool) -> "PreTrainedModel":
    """The model as one of the Auto classes loads it, refused where a part of it would be random.

    A zoo folder with `trust` is run by its own class: the Auto classes prefer an installed one of the same model_type.
    """
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from conversion.engine.heads import head_of
    from conversion.engine.loading import PARTS_AT_RANDOM, PROBLEMS, refuse_incomplete
    from conversion.files.checkpoint import Checkpoint
    from description_zoo.heads import HEADS

    # Its loader would follow an index out of the folder, and says less of a damaged file.
    Checkpoint(folder, named=config.get("transformers_weights"))
    # A pickle can run code when it is opened: never.
    options = {"dtype": dtype, "trust_remote_code": trust, "use_safetensors": True, "output_loading_info": True}
    # Told apart below, by name.
    options["ignore_mismatched_sizes"] = True
    with blamed_on(f"what {folder} says of its model"):
        auto, zoo = HEADS[head_of(config)].auto, config.get("model_type") == MODEL_TYPE
        named = config["auto_map"].get(auto) if zoo and trust else None
        loader = get_class_from_dynamic_module(named, folder) if named else getattr(transformers, auto)
        model, info = loader.from_pretrained(folder, **options)
    own = zoo and not config.get("quantization_config")
    refuse_incomplete(info, folder, PROBLEMS if own else PARTS_AT_RANDOM)
    return model


def default_device() -> str:
    """The accelerator if there is one."""
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def load_tokenizer(folder: Path, trust: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; raises UserError if it has none."""
    from transformers import AutoTokenizer

    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "tekken.json")
    if not any((folder / name).is_file() for name in known):
        raise UserError(f"{folder} has no tokenizer files, so it cannot read or write text.")
    open_folder(folder, trust)
    with blamed_on(f"the tokenizer of {folder}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
