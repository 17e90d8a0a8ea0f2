"""Multi-token prediction: layers behind the model that predict the tokens after the next."""

from copy import copy
from dataclasses import dataclass

from transformers import PreTrainedConfig

from .field_kinds import choice, count, flag, non_negative, settings
from .fields_checks import refuse_unless
from .fields_per_layer import PER_LAYER_FIELDS
from .first_layers import per_layer_names
from .vocabulary import LAYER_TYPES, MLP_LAYER_TYPES, MTP_PROJECTIONS, POSITION_BIASES, WHOLE_STACK_BLOCKS

# Layers that need more than one stream of hidden states: another layer's output, or several streams.
NOT_ALONE = ("shared_block", "shortcut", *WHOLE_STACK_BLOCKS)
# What such a layer has no part in, or would need the whole model for.
WHOLE_MODEL = ("hidden_size_per_layer_input", "embedding_size", "use_bidirectional_attention")
MLP_READERS = ("a layer with an MLP", "a layer with a dense MLP", "a 'sparse' layer")
MTP_KEYS = ("layer_type", "mlp_layer_type", "projection", "hidden_states_first", "loss_coef")


@dataclass(kw_only=True, repr=False)
class MultiTokenFields:
    """Layers that predict one further token each (Gloeckle et al. 2024, arXiv 2404.19737; DeepSeek-V3, arXiv
    2412.19437, §2.2): a better signal in training, and drafts for `generate(use_mtp=True)`."""

    num_mtp_layers: int = count(
        0,
        most=64,
        meaning="How many layers behind the model predict one further token each.",
        source="DeepSeek-V3, arXiv 2412.19437, §2.2; transformers' name",
    )
    mtp: dict | None = settings(
        "How the layers that predict further tokens are built and trained.",
        layer_type=choice(
            LAYER_TYPES,
            needs="prediction layers",
            meaning="The layer_type of these layers, one that a layer of the model has; the last such layer is the one "
            "they are like. None: the last layer's.",
            source="transformers",
        ),
        mlp_layer_type=choice(
            MLP_LAYER_TYPES,
            needs="prediction layers",
            meaning="The mlp_layer_type of these layers, one that a layer of the model has. None: that of the layer "
            "they are like.",
            source="transformers",
        ),
        projection=choice(
            MTP_PROJECTIONS,
            needs="prediction layers",
            meaning="Norms and projection around these layers: one_per_depth or one_for_all. None: one_per_depth.",
            source="DeepSeek-V3, arXiv 2412.19437, §2.2 (one_per_depth); Qwen3-Next's published code (one_for_all)",
        ),
        hidden_states_first=flag(
            needs="prediction layers",
            meaning="The projection reads [hidden state; embedding], instead of [embedding; hidden state].",
            source="transformers",
        ),
        loss_coef=non_negative(
            needs="prediction layers",
            meaning="Factor λ on the mean loss of these layers, in training. None: 0.3.",
            source="DeepSeek-V3, arXiv 2412.19437, §2.2 and §4.2 (0.3, later 0.1)",
        ),
    )

    def resolve_multi_token(self) -> None:
        if self.num_mtp_layers:
            like = self._index_of_like()
            self._fill_mtp("layer_type", self.layer_types[like])
            self._fill_mtp("mlp_layer_type", self.mlp_layer_types[like])
            self._fill_mtp("projection", MTP_PROJECTIONS[0])
            self._fill_mtp("loss_coef", 0.3)

    def _fill_mtp(self, key: str, value: str | float) -> None:
        if self.mtp[key] is None:
            setattr(self, f"mtp.{key}", value)

    def _index_of_like(self) -> int:
        """The last layer of the type that the prediction layers have; the last of all where none has it."""
        wanted, last = self.mtp["layer_type"], self.num_hidden_layers - 1
        return max((i for i, kind in enumerate(self.layer_types) if kind == wanted), default=last)

    def validate_multi_token(self) -> None:
        keys = [f"mtp.{key}" for key in MTP_KEYS]
        refuse_unless(self, bool(self.num_mtp_layers), "num_mtp_layers", keys)
        if not self.num_mtp_layers:
            return
        for key in ("layer_type", "mlp_layer_type"):
            there = getattr(self, f"{key}s")
            if self.mtp[key] not in there:
                raise ValueError(f"mtp.{key}={self.mtp[key]!r} is not one of {key}s, which are {sorted(set(there))}.")
        says = f"num_mtp_layers={self.num_mtp_layers} cannot be combined with"
        block = self.block_types[self._index_of_like()]
        if block in NOT_ALONE:
            raise ValueError(f"{says} block_type {block!r} of the layer that prediction layers are like.")
        if self.attention_types[self._index_of_like()] == "value_residual":
            raise ValueError(f"{says} attention_type 'value_residual' of the layer that prediction layers are like.")
        if self.position_embedding_type in POSITION_BIASES:
            raise ValueError(f"{says} position_embedding_type={self.position_embedding_type!r}.")
        for field in WHOLE_MODEL:
            if getattr(self, field):
                raise ValueError(f"{says} {field}={getattr(self, field)!r}.")

    def mtp_layer_config(self) -> PreTrainedConfig:
        """The config of one prediction layer, as of a model that has no other layer."""
        like, mlp = self._index_of_like(), self.mtp["mlp_layer_type"]
        one = copy(self.per_layer_config[like])
        own = {"num_hidden_layers": 1, "num_mtp_layers": 0, "num_kv_shared_layers": 0, "per_layer_config": None}
        for name in per_layer_names(type(self)):
            entries = getattr(self, name)
            if isinstance(entries, list) and len(entries) == self.num_hidden_layers:
                own[name] = entries[like : like + 1]
        if self.mlp_layer_types[like] != mlp:
            # The numbers of its MLP are those of a layer that has such a one.
            index = max(i for i, kind in enumerate(self.mlp_layer_types) if kind == mlp)
            names = {name for readers in MLP_READERS for name in PER_LAYER_FIELDS[readers]}
            own |= {name: getattr(self.per_layer_config[index], name) for name in names}
        if own.get("indexer_types") == ["shared"]:
            own["indexer_types"] = ["full"]
        own["mlp_layer_types"] = [mlp]
        for name, value in own.items():
            setattr(one, name, value)
        if one.router["num_hash_layers"]:
            one.router = one.router | {"num_hash_layers": 0}
        return one
