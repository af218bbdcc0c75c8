"""A public trio whose prefixes and heads differ: rxnfp's pre-trained BERT and two fine-tunes of it (MIT)."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

from taskvec.errors import KeyMismatch  # noqa: E402
from taskvec.weights import Checkpoint  # noqa: E402

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def root():
    spec = importlib.util.find_spec("rxnfp")  # found, never imported: its code needs old libraries
    if spec is None or not spec.origin:
        pytest.skip("rxnfp is not installed: pip install --no-deps rxnfp")
    return Path(spec.origin).parent / "models" / "transformers"


@pytest.fixture(scope="module")
def trio(root):
    names = ("bert_pretrained", "bert_ft", "bert_ft_10k_25s")
    return [Checkpoint.read(root / n / "pytorch_model.bin", label=n) for n in names]


def test_names_match_across_prefixes_and_what_is_left_out_is_said(trio):
    base, bare, classifier = trio
    for tuned in (bare, classifier):
        with pytest.raises(KeyMismatch, match=r"shared\("):
            _ = tuned - base
        assert len(tuned.match(base).old) == 199
        assert set(tuned.shared(base).names) == {n for n in base.names if n.startswith("bert.")}
    assert "classifier.weight" in str(classifier.match(base))
    assert "cls.predictions.bias" in str(bare.match(base))


def test_geometry_of_the_published_vectors(trio):
    base, bare, classifier = trio
    first, second = (t.shared(base) - base for t in (bare, classifier))
    assert first.norm() == pytest.approx(32.0, abs=0.1)
    assert second.norm() == pytest.approx(13.7, abs=0.1)
    assert first.cosine(second) == pytest.approx(0.09, abs=0.005)
    squares = (float((base.array(n).astype("float64") ** 2).sum()) for n in first.names)
    assert sum(squares) ** 0.5 == pytest.approx(148, abs=1)


def test_the_merged_model_computes_what_a_merge_by_hand_computes(trio, root, tmp_path):
    base, bare, classifier = trio
    merged = base + 0.5 * ((bare.shared(base) - base) + (classifier.shared(base) - base))
    merged.save(tmp_path / "merged")
    settings = json.loads((root / "bert_pretrained" / "config.json").read_text())
    config = transformers.BertConfig(**{k: v for k, v in settings.items() if k in transformers.BertConfig().to_dict()})
    config.save_pretrained(tmp_path / "merged")
    found, report = transformers.BertModel.from_pretrained(
        tmp_path / "merged", local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]

    def plain(name):
        table = torch.load(root / name / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {n.removeprefix("bert."): t for n, t in table.items()}

    a, b, c = (plain(n) for n in ("bert_pretrained", "bert_ft", "bert_ft_10k_25s"))
    by_hand = transformers.BertModel(config)
    with torch.no_grad():
        for n, p in by_hand.named_parameters():
            p.copy_(a[n] + 0.5 * ((b[n] - a[n]) + (c[n] - a[n])))
        ids = torch.arange(5, 45).reshape(2, 20)
        ours, theirs, start = (m.eval()(input_ids=ids).last_hidden_state for m in (found, by_hand, loaded(config, a)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, start, atol=1e-2)
    heads = Checkpoint.read(tmp_path / "merged")
    assert heads.array("cls.predictions.bias").tolist() == base.array("cls.predictions.bias").tolist()


def loaded(config, table):
    model = transformers.BertModel(config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(table[n])
    return model
