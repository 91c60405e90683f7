"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("MPLBACKEND", "agg")

# The gate finds the same with every run; HYPOTHESIS_PROFILE=explore looks where nobody has looked.
settings.register_profile("gate", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder in WARDROUND_DATA; where it is set, whatever is missing in it is a failure."""
    root = os.environ.get("WARDROUND_DATA")
    if not root:
        pytest.skip("WARDROUND_DATA is not set: tests on the larger real sets were not run")
    folder = Path(root).resolve()
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        pytest.fail("WARDROUND_DATA is set, but holds no data/ and models/ as docs/data.md says")
    return folder


# Without WARDROUND_DATA the tests on the larger sets are skipped, and the last line of the run says so.
# Where it is set, a skip for its sake is a failure: the data is there and was not used.
_NOT_TESTED = pytest.StashKey[list[str]]()


def _skipped_for_data(report: pytest.TestReport | pytest.CollectReport) -> bool:
    return report.outcome == "skipped" and "WARDROUND_DATA" in str(report.longrepr)


def _insist(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("WARDROUND_DATA") and _skipped_for_data(report):
        report.outcome = "failed"
        report.longrepr = f"WARDROUND_DATA is set, yet {report.nodeid} was skipped: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip of a test that lacks the data into a failure where the data is there."""
    report = yield
    _insist(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    _insist(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Note what was skipped for want of the data."""
    skipped = terminalreporter.stats.get("skipped", [])
    config.stash[_NOT_TESTED] = sorted(report.nodeid for report in skipped if _skipped_for_data(report))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Say it in the run's last line."""
    names = config.stash.get(_NOT_TESTED, [])
    if names:
        files = ", ".join(sorted({name.partition("::")[0] for name in names}))
        print(f"not tested, because WARDROUND_DATA is not set: {len(names)} tests in {files}")  # noqa: T201 - pytest's last line is printed before this hook


# Tiny models, made from a config once a run: real architectures, real tokenizers, no download.
_SENTENCES = (
    "The patient is a 61 year old man with chest pain on exertion.",
    "What are the symptoms of diabetes? Thirst, hunger and tiredness are common.",
    "We measured the heart rate of all patients. The results were significant.",
    "She takes aspirin daily; no fever, no cough, normal blood pressure.",
)
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _byte_tokenizer(specials: dict[str, str], extra: list[str], frame: str | None, **options: Any) -> Any:
    """Byte-level BPE that reads any text; `frame` holds the roles that open and close it, if any."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[*dict.fromkeys(specials.values()), *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    if frame is not None:
        first, last = (specials[role] for role in frame.split())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
        )
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, **specials, **options)


def _save_tiny(folder: Path, tokenizer: Any, architecture: str, config: Any) -> Path:
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = getattr(transformers, architecture)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_lock() -> Iterator[None]:
    """No test knows another one's passphrase."""
    yield
    from wardround.runtime.passphrases import Lock, use_lock

    use_lock(Lock())


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal LM with grouped-query attention and a chat template that ends assistant turns."""
    from transformers import LlamaConfig

    tokenizer = _byte_tokenizer(
        {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
        ["<|system|>", "<|user|>", "<|assistant|>"], None, model_max_length=256,
        padding_side="left", chat_template=_CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    return _save_tiny(tmp_path_factory.mktemp("tiny_llama"), tokenizer, "LlamaForCausalLM", config)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an encoder without a head: a sequence classifier that loads it lacks `classifier`."""
    from transformers import BertConfig

    tokenizer = _byte_tokenizer(
        {
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        [], "cls_token sep_token",
        model_max_length=128, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    return _save_tiny(tmp_path_factory.mktemp("tiny_bert"), tokenizer, "BertModel", config)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal LM with Conv1D layers, no chat template and no pad token."""
    from transformers import GPT2Config

    tokenizer = _byte_tokenizer(
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, [], None, model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _save_tiny(tmp_path_factory.mktemp("tiny_gpt2"), tokenizer, "GPT2LMHeadModel", config)
