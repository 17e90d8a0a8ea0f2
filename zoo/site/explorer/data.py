"""What the explorer knows: models, fields, and what each part of a drawing is."""

import inspect
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...cli.errors import UserError
from ..concepts import CONCEPTS, flags_of

# Beside this file in an installed package, under examples/ in a checkout.
PLACES = (Path(__file__).with_name("stories260K"), Path(__file__).resolve().parents[3] / "examples" / "stories260K")
ROUTED = Path(__file__).with_name("routed")
STORIES = next((place for place in PLACES if place.is_dir()), PLACES[0])
# Where a published config comes from, or another model's weights were described: not what a model is.
NOT_SHOWN = ("source_config", "source_extras", "surgery", "transformers_version")


def models() -> dict[str, dict[str, Any]]:
    """{name: facts} of every preset, then of every family's usual model; `config` as its config.json says it."""
    from configuration_zoo import ZooConfig
    from configuration_zoo.presets import presets
    from conversion.engine.catalog import facts, usual_config
    from conversion.engine.registry import known_families

    found = {}
    for name, preset in presets().items():
        said = {"kind": "preset", "source": preset.source, "published": preset.parameters, "note": preset.note}
        found[name] = said | {"config": config_json(ZooConfig.preset(name))}
    for name in known_families():
        config = config_json(usual_config(name))
        found.setdefault(name, {"kind": "family", "source": facts(name)["models"], "config": config})
    return found


def config_json(config: Any) -> str:
    """The text of config.json without where the model came from; as text, since 1.0 is no 1 there."""
    for name in ("source_config", "source_extras", "surgery"):
        setattr(config, name, None)
    said = json.loads(config.to_json_string(use_diff=True))
    return json.dumps({name: value for name, value in said.items() if name not in NOT_SHOWN})


def fields() -> dict[str, dict[str, Any]]:
    """{name: what `zoo flags NAME` says}."""
    from description_zoo.flags import flags

    return flags()


def parts() -> dict[str, dict[str, dict[str, Any]]]:
    """{kind of part: {word of the config: its class, file, text and guides}}, from the registries of the model."""
    from modeling_zoo.attention_gates import OUTPUT_GATES
    from modeling_zoo.attention_sparse_indexer import LightningIndexer
    from modeling_zoo.block_multi_token import MultiTokenPrediction
    from modeling_zoo.block_per_layer_input import PerLayerInput
    from modeling_zoo.block_shared import SharedBlock
    from modeling_zoo.block_topologies import BLOCKS
    from modeling_zoo.embeddings import Backbone, shape_logits
    from modeling_zoo.mlp_dense import GatedMLP, PlainMLP
    from modeling_zoo.mlp_routers import ROUTERS
    from modeling_zoo.mlp_sparse import SparseMLP
    from modeling_zoo.norms import NORMS
    from modeling_zoo.position_rotary import RotaryEmbedding
    from modeling_zoo.position_tables import ADDED_POSITIONS, POSITION_BIASES
    from modeling_zoo.registry import MIXERS

    # `transformer_xl` positions are a mixer's own.
    positions = {"rope": RotaryEmbedding} | {**ADDED_POSITIONS, **POSITION_BIASES}
    kinds = {
        "mixer": MIXERS,
        "block": BLOCKS,
        "mlp": {"gated": GatedMLP, "plain": PlainMLP, "sparse": SparseMLP},
        "router": ROUTERS,
        "norm": NORMS,
        "gate": OUTPUT_GATES,
        "position": {name: positions[name] for name in sorted(positions)},
        "end": {"embedding": Backbone.embed, "head": shape_logits},
        "other": {
            "indexer": LightningIndexer,
            "shared_block": SharedBlock,
            "per_layer_input": PerLayerInput,
            "further": MultiTokenPrediction,
        },
    }
    return {kind: {word: part(what) for word, what in words.items()} for kind, words in kinds.items()}


def part(what: type | Callable) -> dict[str, Any]:
    """Formula and source of a class or function, and the guides that have it."""
    file = Path(inspect.getsourcefile(what)).name
    place = f"modeling_zoo/{file}:{what.__qualname__}"
    return {
        "name": what.__qualname__,
        "file": f"modeling_zoo/{file}",
        "text": inspect.getdoc(what) or "",
        "guides": [slug for slug, concept in CONCEPTS.items() if place in concept.classes],
    }


def guides() -> dict[str, dict[str, Any]]:
    """{slug: title and flags} of every guide."""
    every = fields()
    return {slug: {"title": one.title, "flags": flags_of(one, every)} for slug, one in CONCEPTS.items()}


def topologies() -> dict[str, list]:
    """{block_type: what stands along the residual stream}, as the drawings of zoo have it."""
    from description_zoo.picture import TOPOLOGIES, OnStream, Together

    def described(piece: Any) -> dict[str, Any]:
        if isinstance(piece, Together):
            return {"together": [described(branch) for branch in piece.branches], "one_norm": piece.one_norm}
        return {"norm": True} if isinstance(piece, OnStream) else piece._asdict()

    return {name: [described(piece) for piece in pieces] for name, pieces in TOPOLOGIES.items()}


def gpus() -> dict[str, dict[str, Any]]:
    """{name: memory, bandwidth, operations} of GPUs."""
    from description_zoo.gpus import GPUS

    return {name: vars(gpu) for name, gpu in GPUS.items()}


def stories() -> dict[str, Any]:
    """The models that run in the page: their configs, the tokenizer of both, and their weights as files in base64.
    Raises UserError where stories260K is not installed."""
    if not STORIES.is_dir():
        raise UserError(f"The model that runs in the explorer is missing: copy examples/stories260K to {STORIES}.")
    found = {"tokenizer": json.loads((STORIES / "tokenizer.json").read_text("utf-8")), "configs": {}, "weights": {}}
    for name, folder in {"stories260K": STORIES, "routed": ROUTED}.items():
        found["configs"][name] = run_config(folder)
        found["weights"][name] = b64encode((folder / "model.safetensors").read_bytes()).decode()
    return found


def run_config(folder: Path) -> dict[str, Any]:
    """What the page has to know to run a model, as its own config.json says it, or with what ZooConfig derives."""
    said = json.loads((folder / "config.json").read_text("utf-8"))
    if said["model_type"] != "zoo":
        return said
    from configuration_zoo import ZooConfig

    whole = ZooConfig.from_pretrained(folder).to_dict()
    return {name: whole[name] for name in RUN}


RUN = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "norm_eps",
    "rope_parameters", "max_position_embeddings", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "norm_topk_prob", "bos_token_id", "eos_token_id",
)  # fmt: skip
