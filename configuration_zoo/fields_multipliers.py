"""Constant factors beside the projections of a layer, as maximal update parametrization (muP) has them."""

from dataclasses import dataclass

from .field_kinds import Number, factor, items, settings
from .fields_checks import for_each_layer, refuse_unless
from .vocabulary import HYBRID_LAYERS, PER_HEAD_ATTENTIONS

HYBRID_FACTORS = ("mup_multipliers.attention_in", "mup_multipliers.attention_out")


@dataclass(kw_only=True, repr=False)
class MultiplierFields:
    """Factors that are no parameters, so that one learning rate serves every width (Yang et al. 2022, arXiv
    2203.03466)."""

    mup_multipliers: dict | None = settings(
        "Constant factors on what goes into and comes out of the projections of a layer (muP).",
        key=factor(
            needs="softmax",
            meaning="Factor on the projected keys before they are cached. None: 1.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
        attention_in=factor(
            needs="hybrid layer",
            meaning="Factor on the input of the attention beside a recurrence. None: 1.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
        attention_out=factor(
            needs="hybrid layer",
            meaning="Factor on the output of the attention beside a recurrence. None: 1.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
        linear_in=factor(
            meaning="Factor on the input of a state space model. None: 1.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
        linear_out=factor(
            meaning="Factor on the output of a state space model. None: 1.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
        linear_sections=items(
            Number(),
            5,
            meaning="Factors on the sections z, x, B, C and dt of a state space model's projection. None: 1 each.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
        mlp=items(
            Number(),
            2,
            needs="mlp",
            meaning="Factors on the gate before its activation and on the output. None: 1 each.",
            source="Falcon-H1, arXiv 2507.22448, §3.2",
        ),
    )

    @for_each_layer
    def validate_multipliers(self) -> None:
        plain = bool(self.attentions & {*PER_HEAD_ATTENTIONS}) and self.position_embedding_type != "transformer_xl"
        reason = (
            f"an attention_type of {list(PER_HEAD_ATTENTIONS)}, a position_embedding_type other than 'transformer_xl'"
        )
        refuse_unless(self, plain, reason, ("mup_multipliers.key",))
        beside = any(layer_type in HYBRID_LAYERS for layer_type in self.layer_types)
        reason = f"a layer of layer_types that is one of {list(HYBRID_LAYERS)}"
        refuse_unless(self, beside, reason, HYBRID_FACTORS)
        dense = self.gated_mlp and "sparse" not in self.mlp_layer_types
        refuse_unless(self, dense, "gated_mlp=True and mlp_layer_types that are all 'dense'", ("mup_multipliers.mlp",))
