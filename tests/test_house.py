"""The house rules, as tests: what a reader of CONTRIBUTING.md is promised about every file."""

import ast
import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from conversion.engine.registry import known_families

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("configuration_zoo", "modeling_zoo")
PACKAGES = (*SHIPPED, "description_zoo", "conversion", "zoo")
EXPORTER = {path.stem for path in (ROOT / "modeling_zoo").glob("export*.py")}
NEVER_SHIPPED = {
    "__init__.py",
    "presets.py",
    "platform_kernels.py",
    "platform_paged_mla.py",
    *(f"{name}.py" for name in EXPORTER),
}
FILE_BUDGET, FUNCTION_BUDGET, FAMILY_BUDGET = 400, 50, 80


def sources(*packages):
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


# conversion/families/<model_type>.py is a family; the other files there are the engine.
FAMILIES = [ROOT / "conversion" / "families" / f"{name}.py" for name in known_families()]


def identify(path):
    return str(path.relative_to(ROOT))


@cache
def tree_of(path):
    return ast.parse(path.read_text(), filename=str(path))


def docstrings(tree):
    """The string nodes of `tree` that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    firsts = [body[0].value for body in bodies if isinstance(body[0], ast.Expr)]
    return [value for value in firsts if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def prose_of_fields(tree):
    """The string nodes that say what a field of the config means and where it is from."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    said = [word.value for call in calls for word in call.keywords if word.arg in ("meaning", "source")]
    said += [arg for call in calls if getattr(call.func, "id", "") == "settings" for arg in call.args]
    return [value for value in said if isinstance(value, ast.Constant)]


def code_words(tree):
    """(line, word) of each name and each string of the code, docstrings and prose left out."""
    skipped = {id(node) for node in (*docstrings(tree), *prose_of_fields(tree))}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield line, node.value
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield line, value


# -- what ships ----------------------------------------------------------------------------------------------------


# What a file of the model is about is the first word of its name: `ls modeling_zoo` is the map.
ROOMS = (
    "attention",
    "recurrent",
    "mlp",
    "position",
    "block",
    "ops",
    "cache",
    "train",
    "platform",
    "embeddings",
    "norms",
)
DOORS = {"__init__", "modeling_zoo", "registry", "mixer", *EXPORTER}


def test_every_file_of_the_model_begins_with_the_word_of_its_room():
    names = {path.stem for path in sources("modeling_zoo")} - DOORS
    assert {name for name in names if name.partition("_")[0] not in ROOMS} == set()


# Mathematics, which looks at no machine: what is faster somewhere is behind a function of ops_*, what bends to another
# library in platform_*.
CONCEPTS = ("attention", "recurrent", "mlp", "position", "block", "norms", "embeddings", "mixer")
CONCEPT_FILES = [path for path in sources("modeling_zoo") if path.stem.partition("_")[0] in CONCEPTS]
OF_THE_MACHINE = {
    "_attn_implementation", "_pp_stage", "environ", "has_kernels", "is_autocast_enabled", "is_compiling", "is_cuda",
    "is_eager_cpu_inference", "is_emulated", "is_exporting", "is_grad_enabled", "is_inference_mode_enabled",
    "is_traced", "is_tracing", "use_fp32_gemm",
}  # fmt: skip
CLASS_BUDGET, METHOD_BUDGET = 150, 14


def questions_to_the_machine(tree):
    for node in ast.walk(tree):
        name = getattr(node, "attr", getattr(node, "id", None))
        of_device = name == "type" and isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("device")
        if name in OF_THE_MACHINE or of_device:
            yield f"{node.lineno}: {ast.unparse(node)}"
    for line, word in code_words(tree):
        if "vllm" in word.lower():
            yield f"{line}: {word}"


@pytest.mark.parametrize("path", CONCEPT_FILES, ids=identify)
def test_a_concept_asks_nothing_about_the_machine(path):
    assert list(questions_to_the_machine(tree_of(path))) == []


def test_a_question_to_the_machine_would_be_found():
    code = "if x.device.type == 'cpu' and not torch.is_grad_enabled(): pass\nbackend.startswith('vllm')\nx.device\n"
    assert len(list(questions_to_the_machine(ast.parse(code)))) == 3


@pytest.mark.parametrize("path", CONCEPT_FILES, ids=identify)
def test_the_class_of_a_concept_reads_on_two_screens(path):
    classes = [node for node in tree_of(path).body if isinstance(node, ast.ClassDef)]
    lines = {node.name: node.end_lineno - node.lineno + 1 for node in classes}
    methods = {node.name: sum(isinstance(part, ast.FunctionDef) for part in node.body) for node in classes}
    assert {name: count for name, count in lines.items() if count > CLASS_BUDGET} == {}
    assert {name: count for name, count in methods.items() if count > METHOD_BUDGET} == {}


def test_operations_and_caches_know_no_concept():
    """ops_*, cache_* <- concepts <- modeling_zoo.py; a platform file may be asked from anywhere."""
    for path in sources("modeling_zoo"):
        if path.stem.partition("_")[0] in ("ops", "cache"):
            rooms = {name.partition("_")[0] for name in relative_imports(path)}
            assert rooms <= {"ops", "cache", "platform"}, identify(path)


@pytest.mark.parametrize("package", SHIPPED)
def test_shipped_packages_are_flat(package):
    folders = [path.name for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert folders == []


def test_shipped_base_names_are_unique():
    names = [path.name for path in sources(*SHIPPED) if path.name not in NEVER_SHIPPED]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


# As transformers' dynamic_module_utils reads it: anywhere in the text, docstrings included.
RELATIVE_LINE = re.compile(r"^\s*(?:from\s+\.|import\s+\.).*$", re.MULTILINE)
ALLOWED_LINE = re.compile(r"^from \.(\w+) import (\(|\w+)")


@pytest.mark.parametrize("path", sources(*SHIPPED), ids=identify)
def test_neighbours_are_imported_in_the_one_form_the_hub_follows(path):
    text, package = path.read_text(), path.parent
    lines = [match.group().lstrip("\n") for match in RELATIVE_LINE.finditer(text)]
    for line in lines:
        match = ALLOWED_LINE.match(line)
        assert match, f"{line!r} must read `from .name import thing` at the start of its line"
        assert (package / f"{match[1]}.py").is_file(), f"{line!r} names no file of {package.name}/"
    in_code = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert len(in_code) == len(lines), "a relative import inside a docstring, or one that is not on a line of its own"


def absolute_imports_of_own_packages(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in PACKAGES:
            yield node.module
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)


def test_the_model_imports_the_config_by_one_line():
    """`from configuration_zoo import ZooConfig`, which becomes the neighbour of the two files of a model folder."""
    for path in sources(*SHIPPED):
        if path.name not in NEVER_SHIPPED:
            modules = list(absolute_imports_of_own_packages(path))
            assert modules in ([], ["configuration_zoo"]), identify(path)
            assert not modules or "\nfrom configuration_zoo import ZooConfig\n" in path.read_text(), identify(path)


def relative_imports(path):
    return {node.module for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level == 1}


@pytest.mark.parametrize("package", SHIPPED)
def test_every_shipped_file_is_reached_from_the_one_auto_map_names(package):
    folder = ROOT / package
    reached, todo = set(), [package]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += relative_imports(folder / f"{name}.py")
    assert reached == {path.stem for path in folder.glob("*.py") if path.name not in NEVER_SHIPPED}


MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?::\w+)?")


def modules_in_strings(path):
    """What a dynamic import would take: a string that is nothing but the name of a module of ours, or of what is in it.

    The table of a package's `__init__`, which does not ship, is where an upper floor is bound to a lower one.
    """
    if path.name == "__init__.py":
        return []
    strings = [node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant)]
    return [value for value in strings if isinstance(value, str) and MODULE.fullmatch(value)]


def test_a_dynamic_import_would_be_found(tmp_path):
    (tmp_path / "lower.py").write_text(
        "import importlib\nimportlib.import_module('conversion.engine.plan')\n'conversion'\n"
    )
    assert modules_in_strings(tmp_path / "lower.py") == ["conversion.engine.plan"]


def test_no_shipped_file_imports_by_name():
    for path in sources(*SHIPPED):
        if path.name not in NEVER_SHIPPED:
            assert not {"importlib", "pkgutil", "__import__"} & {word for _, word in code_words(tree_of(path))}, (
                identify(path)
            )


def test_arrows_go_one_way():
    """configuration_zoo <- modeling_zoo <- description_zoo <- conversion <- zoo."""
    for index, package in enumerate(PACKAGES):
        later = set(PACKAGES[index + 1 :])
        for path in sources(package):
            named = {*absolute_imports_of_own_packages(path), *modules_in_strings(path)}
            wrong = sorted(name for name in named if re.split(r"[.:]", name)[0] in later)
            assert not wrong, f"{identify(path)} reaches up to {wrong}"


@pytest.mark.parametrize("package", SHIPPED)
def test_no_import_cycle(package):
    from graphlib import TopologicalSorter

    graph = {path.stem: relative_imports(path) for path in (ROOT / package).glob("*.py")}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_tests_mirror_the_packages():
    """tests/<package>/test_*.py; this page, and what several use in tests/support/."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"support", "benchmarks", "examples"} <= {*PACKAGES}
    assert [path.name for path in (ROOT / "tests").glob("*.py")] in (
        ["conftest.py", "test_house.py"],
        ["test_house.py", "conftest.py"],
    )


# -- names ---------------------------------------------------------------------------------------------------------


# What a person calls the models; every family of conversion/ is added by its file name.
FOREIGN = set(
    (
        "apertus arcee baichuan bailing bamba bloom chatglm cohere dbrx deepseek ernie exaone falcon gemma "
        "glm gpt granite grok hunyuan internlm jamba kimi llama longcat mimo minimax ministral mistral "
        "mixtral nemotron olmo persimmon pythia qwen smollm solar stablelm starcoder zamba"
    ).split()
)
FOREIGN |= {re.match("[a-z]*", path.stem)[0] for path in FAMILIES}
# Names of mechanisms, not of the model that brought them, and words with another meaning in code.
# mamba_ssm is a library, and what is in it.
MECHANISMS = {"kimi_delta_attention", "KimiDeltaAttention", "llama3", "mamba", "mamba2"}
MECHANISMS |= {"mamba_ssm", "mamba_chunk_scan_combined"}
FOREIGN -= {"phi", "opt", "seed", "flex", "recurrent", "step"}


def parts(word):
    """ "LlamaAttention", "qwen3_norm" -> {"llama", "attention"}, {"qwen", "norm"}."""
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", word)}


# What they are made of, and what they call things: words that are refused, or never ship.
THEIR_WORDS = ("other_words.py", "presets.py")


@pytest.mark.parametrize("path", [path for path in sources(*SHIPPED) if path.name not in THEIR_WORDS], ids=identify)
def test_no_code_of_the_model_names_a_foreign_model(path):
    words = [(line, word) for line, word in code_words(tree_of(path)) if word not in MECHANISMS]
    assert [f"{line}: {word}" for line, word in words if parts(word) & FOREIGN] == []


def test_a_foreign_name_would_be_found():
    tree = ast.parse(
        "class LlamaNorm:\n    'Llama may be cited here.'\n    kind = 'qwen3_moe'\n    def gemma_step(self): ...\n"
    )
    assert {word for _, word in code_words(tree) if parts(word) & FOREIGN} == {"LlamaNorm", "qwen3_moe", "gemma_step"}


@pytest.mark.parametrize("path", sources(*SHIPPED), ids=identify)
def test_no_code_of_the_model_compares_a_model_type(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Compare):
            assert "model_type" not in ast.unparse(node), f"line {node.lineno}"


# transformers changes its behaviour where one of these stands in a class name.
SPECIAL_SUBSTRINGS = ("mamba", "reformer", "minimax", "xlnet", "rwkv", "xlstm")


@pytest.mark.parametrize("path", sources("modeling_zoo"), ids=identify)
def test_no_class_name_is_one_transformers_treats_specially(path):
    names = [node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    assert [name for name in names if any(special in name.lower() for special in SPECIAL_SUBSTRINGS)] == []


@pytest.mark.parametrize("path", sources("modeling_zoo"), ids=identify)
def test_linear_maps_are_torch_s_own(path):
    """bitsandbytes, transformers' FP8 and torch's quantize_dynamic ask `type(module) is nn.Linear`, and pass over a
    subclass in silence."""
    classes = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases] for node in classes}
    assert [name for name, found in bases.items() if "Linear" in found] == []


# -- sizes and state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=identify)
def test_files_and_functions_keep_to_their_budget(path):
    """A function's lines are those of its body: a long list of documented options is no logic."""
    assert len(path.read_text().splitlines()) <= FILE_BUDGET
    functions = [n for n in ast.walk(tree_of(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {function.name: function.end_lineno - function.body[0].lineno + 1 for function in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_BUDGET} == {}


REGISTRY_NAME = re.compile(r"_?[A-Z][A-Z0-9_]*$")
MUTABLE = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp, ast.Call)


@pytest.mark.parametrize("path", sources("configuration_zoo", "modeling_zoo"), ids=identify)
def test_no_mutable_module_state(path):
    """A module's top level holds constants and literal registries in capitals; nothing writes to them."""
    tree = tree_of(path)
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Global, ast.Nonlocal))]
    literal = set()
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for name in [target.id for target in targets if isinstance(target, ast.Name)]:
            if isinstance(node.value, MUTABLE):
                assert REGISTRY_NAME.match(name) or name in ("logger", "__all__"), f"{name}, line {node.lineno}"
                literal.add(name)
    for node in ast.walk(tree):
        written = []
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            written = node.targets if hasattr(node, "targets") else [node.target]
        for target in written:
            if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
                assert target.value.id not in literal, f"{target.value.id} is written to, line {node.lineno}"


# -- words ---------------------------------------------------------------------------------------------------------


# Names and parts of names that were our own, where the field has a word: `reach_of` was how many tokens a layer sees.
OWN_NAMES = set(
    (
        "absorption_pays attend_grouped attend_one band_reach block_of_tokens carry_along eight_bit ends_elsewhere "
        "engine_obstacles in_one_call in_turns into_latent is_alone is_bare keys_before layer_word lay_out "
        "lifted_linear mark_writers may_lift one_by_one out_of_latent over_heads picks_faster sees_all seen_by_one "
        "served_by shared_parts shares_keys_of shares_reads starts_elsewhere takes_bands wants_indexer_loss "
        "wants_kernels wants_router_losses writes_in_layer"
    ).split()
)
OWN_PARTS = {"carriers", "lends", "lift", "lifts", "obstacles", "reach", "settle", "teach", "whoever"}
# What pages, cards, comments, docstrings and messages do not say -> what they say instead.
OWN_PHRASES = {
    r"(?<!residual )the stream\b": "the residual stream",
    r"in the place of\b": "in place of, instead of",
    r"(?:any|no|some)body\b|whoever\b": "the program, the file, the user, the process: whatever it is",
    r"way back\b": "converting back, the reverse conversion",
    r"at work for\b": "active per token",
    r"in silence\b": "silently",
    r"anew\b|once more\b": "again",
    r"kept aside\b": "set aside",
    r"in turns\b": "alternately",
    r"obeys?\b|shall\b": "acts on, must",
    r"(?:layer|transformers)(?:'s?)? words?\b|words? (?:of|for) (?:a |its |the )?layers?\b": "layer type",
}
# The words of a text, not of the program.
PHRASES_ALLOWED = {"examples/fine_tuning.py": {"layer type"}, "examples/finetune_reward.py": {"layer type"}}
PROSE = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if re.search(r"\.(?:py|pyi|md|yml|toml|cff)$", name) and not name.startswith(("tests/", "examples/stories"))
]


def own_names(tree):
    """(line, name) of identifiers, and of strings that could be one: a key of JSON, the heading of a table."""
    for line, word in code_words(tree):
        if re.fullmatch(r"\w+", word) and (word.strip("_") in OWN_NAMES or parts(word) & OWN_PARTS):
            yield line, word


def own_phrases(text):
    """(what is written, what is meant) for each phrase above in a text, over the ends of lines."""
    flat = re.sub(r"\s+(?:# |#: )?", " ", re.sub(r'"\s+f?"', "", text))
    for phrase, instead in OWN_PHRASES.items():
        for found in re.finditer(rf"\b{phrase}" if phrase[:2] != "(?" else phrase, flat, flags=re.IGNORECASE):
            yield flat[max(found.start() - 30, 0) : found.end()], instead


def test_names_are_those_of_the_field():
    found = {identify(path): list(own_names(tree_of(path))) for path in PROSE if path.suffix == ".py"}
    assert {path: names for path, names in found.items() if names} == {}


def test_sentences_use_the_words_of_the_field():
    for path in PROSE:
        allowed = PHRASES_ALLOWED.get(identify(path), set())
        found = [(text, instead) for text, instead in own_phrases(path.read_text()) if instead not in allowed]
        assert found == [], identify(path)


def test_a_word_of_our_own_would_be_found():
    code = "class A:\n    def reach_of(self, mayLift): ...\nrow = {'reach': 1}\nis_bare = reaches = 'would reach it'\n"
    assert {name for _, name in own_names(ast.parse(code))} == {"reach_of", "mayLift", "reach", "is_bare"}
    text = "Added to the\n    # stream, in the\nplace of one, not to the residual stream"
    assert [instead for _, instead in own_phrases(text)] == ["the residual stream", "in place of, instead of"]
    assert len(list(own_phrases('"kept for the "\n    f"way back"'))) == 1


# -- types ---------------------------------------------------------------------------------------------------------


def public_functions(body):
    """Functions and methods of a module whose names, and their classes', begin without an underscore; `__init__` and
    its like too."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from public_functions([*node.body, *node.orelse])
        elif getattr(node, "name", "_").startswith("_") and not re.fullmatch("__.*__", getattr(node, "name", "_")):
            continue
        elif isinstance(node, ast.ClassDef):
            yield from public_functions(node.body)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def untyped(function):
    """Names of the parameters without a hint, and `return`; without self and cls, and `__init__`, which returns
    nothing."""
    given = function.args
    parameters = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    names = [p.arg for p in parameters if p is not None and p.annotation is None]
    names += ["return"] if function.returns is None and function.name != "__init__" else []
    return [name for name in names if name not in ("self", "cls")]


def test_public_functions_have_type_hints():
    found = {}
    for path in sources(*PACKAGES):
        for function in public_functions(tree_of(path).body):
            if names := untyped(function):
                found[f"{identify(path)}:{function.lineno} {function.name}"] = names
    assert found == {}


def test_a_missing_type_hint_would_be_found():
    code = (
        "def f(x, *rest: int): ...\nclass A:\n    def __init__(self, y): ...\n    def _g(self, z): ...\ndef _h(w): ..."
    )
    assert [untyped(function) for function in public_functions(ast.parse(code).body)] == [["x", "return"], ["y"]]


REFUSALS = {"ConversionError", "KeyError", "OSError", "RuntimeError", "TypeError", "UserError", "ValueError"}


def silent_refusals(body, said=""):
    """Public functions of a module that raise, and whose docstring, and their class's for `__init__`, says nothing of
    it. The name says it of a validator, a check and a refusal."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from silent_refusals(node.body, ast.get_docstring(node) or "")
        elif isinstance(node, ast.FunctionDef) and not re.match("_(?!_init)|validate_|check$|refuse_", node.name):
            text = (ast.get_docstring(node) or "") + (said if node.name == "__init__" else "")
            calls = [raised.exc for raised in ast.walk(node) if isinstance(raised, ast.Raise)]
            raised = {getattr(call.func, "id", "") for call in calls if isinstance(call, ast.Call)} & REFUSALS
            if raised and not re.search("raises?|refuse|error", text, flags=re.IGNORECASE):
                yield node.name


def test_docstrings_say_what_raises():
    """Not of a family, which `engine/family.py` describes, nor of a subcommand, whose docstring is its help."""
    paths = [path for path in sources(*PACKAGES) if path.parent.name != "families"]
    found = {identify(path): list(silent_refusals(tree_of(path).body)) for path in paths}
    commands = {name: found.pop(f"zoo/cli/{name}.py") for name in ("export", "push")}
    assert commands == {"export": ["export"], "push": ["push"]}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_silent_refusal_would_be_found():
    code = "def f():\n    'Of x.'\n    raise ValueError(1)\ndef g():\n    'Raises ValueError.'\n    raise ValueError(1)"
    assert list(silent_refusals(ast.parse(code).body)) == ["f"]


# -- registries ----------------------------------------------------------------------------------------------------


SPARSE = {"num_experts": 4, "num_experts_per_tok": 2}
LINEAR = {"layer_types": ["linear_attention"] * 2, "linear_attention_type": "linear_attention"}
# Registry -> the field(s) its keys are values of (a tuple of fields: a tuple of keys), and what else the config needs.
FIELDS_OF = {
    "BLOCKS": (("block_type",), {}),
    "COMBINATIONS": (("shared_expert_combination_strategy",), SPARSE | {"n_shared_experts": 1}),
    "GROUP_SCORES": (("router.group_score",), SPARSE | {"n_group": 2, "topk_group": 1}),
    "FEATURE_MAPS": (("linear_attn_config.feature_map",), LINEAR),
    "INITIALIZERS": (("initializer.type",), {}),
    "MLPS": (("mlp_layer_types",), {}),
    "NORMS": (("norm_type",), {}),
    "OUTPUT_GATES": (("attn_output_gate",), {}),
    "PARALLEL_SUMS": (("precision.parallel_sum_order",), {"block_type": "parallel"}),
    "ADDED_POSITIONS": (("position_embedding_type",), {}),
    "RESIDUAL_INITIALIZERS": (("initializer.residual_type",), {}),
    "WAVES": (("position_config.sinusoid_layout",), {"position_embedding_type": "sinusoidal"}),
    "ROUTERS": (("scoring_func",), SPARSE),
}
# Keyed by transformers' words or classes, by a boolean, by the field that asks for it, or holding a part of what
# another registry lists.
KEYED_OTHERWISE = {
    "ACTIVATIONS", "ADDED_LOSSES", "CONNECTIONS", "COUNTING_LAYERS", "DECAYS", "DEPTH_READS",
    "DEVICE_KERNELS", "DRAFTS",
    "ENTRY_LAYERS", "EXPERTS",
    "HYBRID_ATTENTIONS", "KEPT_BESIDE", "LAST_QUERY", "LAUREL", "LINEAR_MIXERS", "MASK_BUILDERS", "MIXERS",
    "MULTI_TOKEN_PREDICTIONS", "PARALLEL_MIXES", "PATTERNS", "PER_LAYER_EMBEDDINGS", "PER_LAYER_INPUTS",
    "POSITION_BIASES", "PROJECTION_NORMS", "REPEAT", "RESIZED", "RING_MASKS", "ROTATE", "SCORING_FUNCTIONS",
    "SERVED_FORWARDS", "SHARED_BLOCKS", "SHARED_EXPERTS", "STREAM_HEADS", "SWAP", "UNHONOURED",
}  # fmt: skip


@cache
def registries():
    """NAME -> dict for each literal dict of name -> class or function at the top level of modeling_zoo/."""
    found = {}
    for path in sources("modeling_zoo"):
        if path.name in NEVER_SHIPPED:
            continue
        module = importlib.import_module(f"modeling_zoo.{path.stem}")
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                name = node.targets[0].id
                values = getattr(module, name)
                if values and all(callable(value) and not isinstance(key, type) for key, value in values.items()):
                    found[name] = values
    return found


def accepted(field, context):
    """The names that ZooConfig itself says are allowed for `field`, from its refusal of one that is not."""
    from huggingface_hub.errors import StrictDataclassError

    from configuration_zoo import ZooConfig

    per_layer = field in ("mlp_layer_types", "layer_types")
    value = ["no such name"] * 2 if per_layer else "no such name"
    with pytest.raises((ValueError, StrictDataclassError), match="no such name") as refusal:
        ZooConfig(num_hidden_layers=2, **context, **{field: value})
    # The second is how transformers itself refuses a word of a per-layer list.
    return set(ast.literal_eval(re.search(r"(?:is not one of|must be in) ([\[(].*?[\])])", str(refusal.value))[1]))


def test_every_registry_is_checked_here():
    assert set(registries()) - KEYED_OTHERWISE == set(FIELDS_OF)


@pytest.mark.parametrize("name", FIELDS_OF)
def test_the_config_accepts_the_keys_of_a_registry_and_no_others(name):
    fields, context = FIELDS_OF[name]
    keys = [key if isinstance(key, tuple) else (key,) for key in registries()[name]]
    for index, field in enumerate(fields):
        assert {key[index] for key in keys} - {None} == accepted(field, context)


def test_the_config_accepts_the_mechanisms_of_the_mixers_and_no_others():
    names = accepted("attention_type", {})
    names |= accepted("linear_attention_type", {"layer_types": ["linear_attention"] * 2})
    # Chosen by another field: a word of layer_types, the position embedding, how many layers share.
    by_other_fields = {
        "indexed",
        "block_indexed",
        "compressed_sparse",
        "heavily_compressed",
        "shared_key_value",
        "transformer_xl",
    }
    assert set(registries()["MIXERS"]) - by_other_fields == names


def test_queries_and_keys_take_the_norms_of_the_stream():
    from configuration_zoo.vocabulary import NORM_TYPES

    assert set(registries()["NORMS"]) == accepted("qk_norm", {})
    assert set(registries()["PROJECTION_NORMS"]) == {name for name, norm in NORM_TYPES.items() if norm.full_scope}


def test_a_word_for_a_layer_is_spelled_on_one_page_of_the_config():
    """vocabulary.py; other_words.py answers words that are none, presets.py is what somebody may write."""
    from configuration_zoo.fields_linear import LINEAR_MECHANISMS
    from configuration_zoo.vocabulary import LAYER_TYPES, RECURRENCES

    # One word of transformers is also the name of a recurrence.
    words, pages = {*LAYER_TYPES} - {*RECURRENCES}, ("vocabulary.py", "other_words.py", "presets.py")
    for path in [path for path in sources("configuration_zoo") if path.name not in pages]:
        assert [f"{line}: {word}" for line, word in code_words(tree_of(path)) if word in words] == [], identify(path)
    assert tuple(LINEAR_MECHANISMS) == RECURRENCES


def run_python(code):
    """Run `code` in a fresh interpreter that sees the repository; -> its standard output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- families -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FAMILIES, ids=identify)
def test_a_family_is_short_and_has_a_card(path):
    assert len(path.read_text().splitlines()) <= FAMILY_BUDGET
    card = ROOT / "model_cards" / f"{path.stem}.md"
    assert card.is_file() and len(card.read_text()) > 200, f"{identify(card)} is missing or empty"


# -- imports, style, front page -------------------------------------------------------------------------------------


def test_importing_the_config_package_loads_no_torch():
    loaded = run_python("import configuration_zoo, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert "torch" not in json.loads(loaded)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# A path in backticks: a folder with a trailing slash, or a file with a known ending.
README_PATH = re.compile(r"`([\w./-]+(?:/|\.(?:py|md|toml|txt|json)))`")


PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Where a page may name a file without its folder, and what a page names that is in a folder of a model, a training or a
# site.
FOLDERS = ("", "modeling_zoo", "configuration_zoo", "conversion/engine", "tests/modeling_zoo")
OF_A_MODEL = {"config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json", "source/"}
OF_A_MODEL |= {"model/", "log.json", "sweep.md", "sweep.json", "site/"}


def missing_paths(text):
    paths = [path for path in README_PATH.findall(text) if path not in OF_A_MODEL]
    return [path for path in paths if not any((ROOT / folder / path).exists() for folder in FOLDERS)]


@pytest.mark.parametrize("page", PAGES)
def test_paths_on_the_pages_exist(page):
    text = (ROOT / page).read_text()
    assert README_PATH.search(text)
    assert missing_paths(text) == []


def test_a_missing_path_would_be_found():
    there, gone = "`modeling_zoo/attention.py`, `attention.py`, `config.json`", "`zoo/attention.py`, `gone.py`, `gone/`"
    assert missing_paths(there) == []
    assert missing_paths(gone) == ["zoo/attention.py", "gone.py", "gone/"]


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "CHANGELOG.md"])
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_flags_on_the_front_page_are_fields():
    from dataclasses import fields

    from configuration_zoo import ZooConfig

    table = (ROOT / "README.md").read_text().split("## Concept, flag, file")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    flags = {flag for row in rows for flag in re.findall(r"`(\w+)", row.split("|")[2])}
    assert len(rows) > 10 and len(flags) > 30
    assert flags - {field.name for field in fields(ZooConfig)} == set()


def test_test_files_have_different_names():
    """pytest imports them by name, from whatever folder."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
