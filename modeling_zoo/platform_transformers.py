"""What transformers keeps in tables of its own about the classes it knows."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def enter_among_causal_models(model_class):
    """Trainer shifts smoothed labels for classes whose name is in this table, and trains any other on predicting the
    token it has just read. A copy that is loaded as remote code enters itself."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(model_class.config_class.model_type, model_class.__name__)
