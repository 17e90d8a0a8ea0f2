"""A converted folder reads and writes the text of the original: transformers picks tokenizers by model_type."""

import json
import shutil

import pytest
from places import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from versions import older_than

from conversion import convert

EXAMPLES = ROOT / "examples"
SIZES = {"vocab_size": 512, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXTS = ["Once upon a  time", "  it's\n\nled 12345", "<|endoftext|>x </s> y<s>", " émile ▁ x"]
SLOW = ("vocab.json", "merges.txt")
LLAMA = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
REMOTE = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
# model_type, its tokenizer's files, tokenizer_config.json, does the copy have to say more
CASES = {
    "gpt2's own repository": ("gpt2", "bytes", ("tokenizer.json", *SLOW), {"model_max_length": 1024}, True),
    "no tokenizer.json": ("gpt2", "bytes", SLOW, {"model_max_length": 1024}, True),
    "no tokenizer_config.json": ("qwen2", "bytes", ("tokenizer.json", *SLOW), None, True),
    "another class than it says": ("mistral", "pieces", ("tokenizer.json",), LLAMA, True),
    "a class of bytes, pieces said": ("llama", "bytes", ("tokenizer.json",), LLAMA, True),
    "code that is not needed": ("phi3", "pieces", ("tokenizer.json",), LLAMA | REMOTE, True),
    "the class it says": ("llama", "pieces", ("tokenizer.json",), LLAMA, False),
    "a tokenizer.json alone": (
        *("llama", "bytes", ("tokenizer.json",)),
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"},
        False,
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders of two tokenizers, one over bytes as GPT-2's, one over pieces as Llama's."""
    folder = tmp_path_factory.mktemp("tokenizers")
    letters = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=letters)
    made.train_from_iterator(["once upon a time there was a little girl named lily"] * 3, trainer)
    (folder / "bytes").mkdir()
    made.save(str(folder / "bytes" / "tokenizer.json"))
    made.model.save(str(folder / "bytes"))
    shutil.copytree(EXAMPLES / "stories260K", folder / "pieces")
    return folder


def save(folder, tokenizers, model_type, kind, files, said):
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SIZES)).save_pretrained(folder)
    for name in files:
        shutil.copyfile(tokenizers / kind / name, folder / name)
    if said is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))


def behaviour(folder, trust):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids]
    return type(tokenizer).__name__, ids, texts, tokenizer.special_tokens_map


def tokenizer_files(folder):
    kinds = ("tokenizer", "vocab", "merges")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(kinds)}


@pytest.mark.parametrize("name", CASES)
def test_the_tokenizer_of_the_copy_is_that_of_the_original(name, tokenizers, tmp_path):
    *source, pinned = CASES[name]
    save(tmp_path / "source", tokenizers, *source)
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    assert behaviour(tmp_path / "zoo", trust=True) == behaviour(tmp_path / "source", trust=False)
    # Up to transformers 5.19 what a file says counts for more.
    if not older_than("5.20"):
        assert (tokenizer_files(tmp_path / "zoo") != tokenizer_files(tmp_path / "source")) == pinned
    convert(tmp_path / "zoo", tmp_path / "back", to=source[0], progress=False)
    assert tokenizer_files(tmp_path / "back") == tokenizer_files(tmp_path / "source")


def test_a_tokenizer_that_was_changed_since_goes_back_as_it_is(tokenizers, tmp_path):
    save(tmp_path / "source", tokenizers, *CASES["gpt2's own repository"][:-1])
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "zoo", trust_remote_code=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "zoo")
    convert(tmp_path / "zoo", tmp_path / "back", to="gpt2", progress=False)
    assert AutoTokenizer.from_pretrained(tmp_path / "back").pad_token == "<pad>"
