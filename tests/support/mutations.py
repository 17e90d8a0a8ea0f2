"""Ways in which a model folder can be broken, on purpose or by accident: each takes a folder, a source of choices and
the place outside of it that links lead to, changes the folder and says in words what it did."""

import json
import os
import socket
from pathlib import Path

# What stands where something else belongs. The last ones are as deep as a parser may be asked to go, and deeper.
WRONG = [
    None, True, False, -1, 0, 1, 3, 10**6, 10**12, 10**30, 0.5, -0.0, 1e30, float("nan"), float("inf"), "", "x", "0",
    "../outside/secret.json", "/etc/hostname", "\x1b[31mred\x1b[0m", "a\nb: c", "`# Heading\n<script>", "a" * 5000,
    "\udcff", [], {}, [None], [[]], {"": ""}, ["x"] * 300, [1] * 7, {"x": {"y": []}}, "llama", "zoo", "gpt2",
]  # fmt: skip
TEXTS = [
    "", "{", "[]", "null", "7", '"text"', "\ufeff{}", "{} {}", "[" * 5000, '{"a":' * 1500, "\0" * 100,
    '{"a": 1, "a": 2}', "{% for x in", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}",
    "{{ messages[7].x }}", "---\nlicense: mit\n---\n# Card",
    "---\nlicense: \"`\\n# HEAD <script>alert(1)</script>\"\n---\n",
    "---\n: [\n---\n", "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
    "---\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\nlicense: [*d,*d,*d,*d,*d,*d,*d,*d]\n---\n",
    "---\nlicense: mit\nbase_model: \"x\\n# HEAD\"\nlanguage: [en, {a: b}]\n"
    "license_link: \"javascript:alert(1)\"\n---\n",
]  # fmt: skip
READ_AS_JSON = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors.index.json", "source/manifest.json",
)  # fmt: skip
ADDED = (
    "chat_template.jinja", "README.md", "LICENSE\x1b[31m.txt", "LICENSE`x <b>", "special_tokens_map.json", "notes.txt",
    "hf_quant_config.json", "model.safetensors.index.json", "added_tokens.json", "adapter_config.json", "vocab.pkl",
    "additional_chat_templates/a.jinja", "processor_config.json", "source/README.md", "train.py", "pytorch_model.bin",
)  # fmt: skip


def places(content, path=()):
    """Every place in a JSON tree, as a path of keys."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if len(path) < 4:
            yield from places(value, (*path, key))


def put(content, path, value):
    """`content` with `value` at `path`; "remove" takes the entry away."""
    if not path:
        return None if value == "remove" else value
    *way, last = path
    inner = content
    for key in way:
        inner = inner[key]
    if value == "remove":
        del inner[last]
    else:
        inner[last] = value
    return content


def pick(choose, options):
    """One of `options`; `choose(n)` gives a number below n."""
    return options[choose(len(options))]


def read(folder, name):
    """The JSON of a file; {} for one that an earlier change has broken."""
    try:
        content = json.loads((folder / name).read_text())
    except (ValueError, OSError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def existing(folder, wanted=lambda name: True):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if wanted(name)]


def change_a_value(folder, choose, outside):
    name = pick(choose, existing(folder, lambda name: name in READ_AS_JSON and not name.startswith("tokenizer.")))
    content = read(folder, name)
    options = [path for path in places(content) if path]
    if not options:
        return f"nothing in {name}"
    path, value = pick(choose, options), pick(choose, [*WRONG, "remove"])
    (folder / name).write_text(json.dumps(put(content, path, value)))
    return f"{name}: {'/'.join(map(str, path))} = {str(value)[:60]!r}"


def add_a_key(folder, choose, outside):
    keys = ("auto_map", "quantization_config", "text_config", "rope_scaling", "architectures", "stop_strings", "dtype",
            "per_layer_config", "layer_types", "eos_token_id", "source_config", "transformers_weights", "chat_template",
            "extra_special_tokens", "model_type", "max_length", "torch_dtype", "num_labels")  # fmt: skip
    name = pick(choose, existing(folder, lambda name: name in READ_AS_JSON and not name.startswith("tokenizer.")))
    content = read(folder, name)
    key, value = pick(choose, keys), pick(choose, WRONG)
    (folder / name).write_text(json.dumps(content | {key: value}))
    return f"{name}: {key} = {str(value)[:60]!r}"


def change_the_tokenizer(folder, choose, outside):
    content = read(folder, "tokenizer.json")
    options = [path for path in places({key: value for key, value in content.items() if key != "model"}) if path]
    options += [("model", key) for key in content.get("model") or ()]
    if not options:
        return "no tokenizer.json"
    path, value = pick(choose, options), pick(choose, [*WRONG, "remove"])
    (folder / "tokenizer.json").write_text(json.dumps(put(content, path, value)))
    return f"tokenizer.json: {'/'.join(map(str, path))} = {str(value)[:60]!r}"


def rewrite(folder, choose, outside):
    name, text = pick(choose, existing(folder, lambda name: not name.endswith(".py"))), pick(choose, TEXTS)
    (folder / name).write_text(text)
    return f"{name} = {text[:60]!r}"


def add(folder, choose, outside):
    name, text = pick(choose, ADDED), pick(choose, TEXTS)
    parent = (folder / name).parent
    if os.path.lexists(folder / name) or (os.path.lexists(parent) and not parent.is_dir()):
        return "nothing new"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return f"new {name!r} = {text[:60]!r}"


def cut(folder, choose, outside):
    name = pick(choose, existing(folder))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: choose(len(data) + 1)])
    return f"{name} cut off"


def flip(folder, choose, outside):
    name = pick(choose, existing(folder, lambda name: not name.endswith(".py")))
    data = bytearray((folder / name).read_bytes())
    for _ in range(1 + choose(4)):
        if data:
            data[choose(min(len(data), 4000))] = choose(256)
    (folder / name).write_bytes(data)
    return f"bytes of {name}"


def remove(folder, choose, outside):
    name = pick(choose, existing(folder))
    (folder / name).unlink()
    return f"without {name}"


def other_kind(folder, choose, outside):
    """Something else under the name of a file: a folder, a pipe, a socket, a link to nowhere, to itself, or out."""
    name = pick(choose, [*existing(folder, lambda name: not name.endswith(".py")), *ADDED])
    path = folder / name
    if path.is_dir() or (os.path.lexists(path.parent) and not path.parent.is_dir()):
        return "nothing else"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    kind = pick(choose, ("folder", "pipe", "socket", "link to nowhere", "link to itself", "link out", "folder out"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # a socket's address is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
        os.fchdir(here)
        os.close(here)
    else:
        to = {"link to nowhere": "nowhere", "link to itself": path.name, "link out": outside / "secret.json"}
        path.symlink_to(to.get(kind, outside))
    return f"{name!r} is a {kind}"


def change_a_header(folder, choose, outside):
    path = folder / "model.safetensors"
    if not path.is_file():
        return "no weights"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return "no header"
    name = pick(choose, [key for key in header if key != "__metadata__"])
    what = pick(choose, ("rename", "remove", "dtype", "shape", "offsets", "again", "wrong"))
    if what == "rename":
        header[pick(choose, ("x", "", "\x1b[31m", "../x", "lm_head.weight", f"model.{name}"))] = header.pop(name)
    elif what == "remove":
        del header[name]
    elif what == "dtype":
        header[name]["dtype"] = pick(choose, ("F16", "I32", "F8_E4M3", "BOOL", "F4", "", 7, None))
    elif what == "shape":
        header[name]["shape"] = pick(choose, ([], [1], [-1, 2], [2**62, 4], header[name]["shape"][::-1], "x", None))
    elif what == "offsets":
        header[name]["data_offsets"] = pick(choose, ([0, 0], [5, 1], [0, 2**63], [-4, 4], "x", None, [0]))
    elif what == "again":
        header[f"{name}_2"] = dict(header[name])
    else:
        header[name] = pick(choose, WRONG)
    text = json.dumps(header).encode()
    length = pick(choose, (len(text),) * 9 + (0, 2**62))
    path.write_bytes(length.to_bytes(8, "little") + text + data[8 + size :])
    return f"header: {what} {name}"


MUTATIONS = [
    change_a_value, change_a_value, change_a_value, add_a_key, change_the_tokenizer, rewrite, add, cut, flip, remove,
    other_kind, other_kind, change_a_header,
]  # fmt: skip


def snapshot(folder: Path) -> dict:
    """{name: what it is and holds} of everything below a folder; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        plain = path.is_file() and not path.is_symlink()
        link = os.readlink(path) if path.is_symlink() else None
        found[path.relative_to(folder).as_posix()] = (stat.st_mode, link, path.read_bytes() if plain else None)
    return found
