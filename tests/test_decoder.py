"""A decoder beside that of transformers: logits, gradients, texts, and the exchange."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_lineages as lineages
from etils import epath
from flax import nnx
from others import VOCAB

from bert_jax.__main__ import main
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.interop.encoder_decoder import halves_of
from bert_jax.interop.formats import read
from bert_jax.interop.lineages import BERT
from bert_jax.interop.portable import structure_of
from bert_jax.interop.tensors import huggingface_naming, write_tensors
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.decoder import Generation
from bert_jax.model.search import Ids, Search, write_texts
from bert_jax.objective.finetuning import FineTuning

PAD, CLS, SEP = (VOCAB.index(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def theirs(torch, tmp_path_factory):
    """A random model of transformers and its directory."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(VOCAB), **SIZES)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        config, transformers.BertConfig(vocab_size=len(VOCAB), **SIZES)
    )
    config.decoder_start_token_id, config.pad_token_id = CLS, PAD
    model = transformers.EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias"):
                values.normal_(std=0.05)
            elif "output.dense" in name:  # the next token depends on the last one, so texts vary
                values *= 0.25
        model.decoder.cls.predictions.bias[SEP] = 1.5  # some texts end
    path = tmp_path_factory.mktemp("theirs")
    save(model, path)
    return model, path


def save(model, path):
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCAB))
    (path / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def sources(rows=5, length=12, seed=0):
    """Rows of one source each, as this package has them."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, length + 1, rows)
    lengths[0] = length
    ids = np.zeros((rows, length), np.int32)
    for row, size in enumerate(lengths):
        ids[row, :size] = [CLS, *random.integers(7, len(VOCAB), size - 2), SEP]
    segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
    batch = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.arange(length) * segments,
        "segment_ids": segments,
    }
    return jax.tree.map(jnp.asarray, batch)


def with_targets(batch, length=9, seed=1):
    random = np.random.default_rng(seed)
    labels = np.full((len(batch["input_ids"]), length + 1), -1, np.int32)
    for row in labels:
        size = random.integers(3, length + 1)
        row[: size + 1] = [CLS, *random.integers(7, len(VOCAB), size - 1), SEP]
    in_rows = np.zeros((len(labels), length, 3), np.int32)
    in_rows[..., 0] = np.maximum(labels[:, :-1], 0)
    in_rows[..., 1] = labels[:, 1:]
    in_rows[..., 2] = labels[:, 1:] >= 0
    return batch | {"labels": jnp.asarray(in_rows)}


def ours(path):
    model = read(path)
    numerics = dataclasses.replace(model.numerics, hidden_dropout=0, attention_dropout=0)
    return structure_of(model._replace(numerics=numerics)).graphdef, model.params


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_and_gradients_are_those_of_transformers(torch, theirs, smoothing):
    model, path = theirs
    graphdef, params = ours(path)
    batch = with_targets(sources())
    head = Generation("cross_attention", label_smoothing=smoothing)
    objective = FineTuning(graphdef, head)

    def loss(params):
        logits = objective.logits(params, batch)
        sums = objective.sums_of(logits, batch)
        return sums["task_loss"] / sums["task_count"], logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    inputs, labels, _ = (torch.tensor(np.array(batch["labels"][..., i])).long() for i in range(3))
    model.zero_grad()
    found = model(
        input_ids=torch.tensor(np.array(batch["input_ids"])).long(),
        attention_mask=torch.tensor(np.array(batch["segment_ids"])),
        decoder_input_ids=inputs,
    ).logits
    known = (labels >= 0).numpy()
    np.testing.assert_allclose(
        logits[..., : len(VOCAB)][known], found.detach().numpy()[known], atol=1e-5
    )
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=smoothing)
    expected = cross_entropy(found.reshape(-1, len(VOCAB)), labels.reshape(-1))
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    encoder, decoder = halves_of(read(path)._replace(params=jax.device_get(gradients)))
    compared = 0
    for half, each, prefix in ((model.encoder, encoder, "bert."), (model.decoder, decoder, "")):
        expected = {name: values.grad for name, values in half.named_parameters()}
        for name, gradient in write_tensors(huggingface_naming(BERT, ()), each):
            if (other := expected[name.removeprefix(prefix)]) is not None:  # of the pooler
                np.testing.assert_allclose(gradient, other.numpy(), atol=1e-4, err_msg=name)
                compared += 1
    assert compared == 37 + 62


SEARCHES = [
    {"num_beams": 1},
    {"num_beams": 1, "no_repeat_ngram_size": 2},
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    {"num_beams": 3, "length_penalty": 0.0, "min_new_tokens": 4},
    {"num_beams": 2, "length_penalty": -1.0, "no_repeat_ngram_size": 1},
]


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_texts_are_those_of_transformers(torch, theirs, options):
    model, path = theirs
    graphdef, params = ours(path)
    batch = sources(rows=16)
    search = Search(
        beams=options["num_beams"],
        max_length=14,
        min_length=options.get("min_new_tokens", 0),
        length_penalty=options.get("length_penalty", 1.0),
        no_repeat_ngram=options.get("no_repeat_ngram_size", 0),
    )

    @jax.jit
    def write(params):
        return write_texts(nnx.merge(graphdef, params), batch, search, Ids(CLS, SEP, PAD))

    found = np.array(write(params))
    expected = model.generate(
        torch.tensor(np.array(batch["input_ids"])).long(),
        attention_mask=torch.tensor(np.array(batch["segment_ids"])),
        max_new_tokens=14,
        eos_token_id=SEP,
        pad_token_id=PAD,
        decoder_start_token_id=CLS,
        **options,
    ).numpy()[:, 1:]

    def text(row):
        return [*itertools.takewhile(lambda token: token != SEP, row.tolist())]

    ended = 0
    for ours_, theirs_ in zip(found, expected):
        assert text(ours_) == text(theirs_)
        ended += SEP in ours_
        if SEP in ours_:
            assert set(ours_[ours_.tolist().index(SEP) + 1 :]) <= {PAD}
    assert ended >= 4


def test_a_model_is_written_as_transformers_reads_it(torch, theirs, tmp_path, capsys):
    import transformers

    model, path = theirs
    assert main(["convert", str(path), str(tmp_path / "ours"), "--to=bert_jax"]) == 0
    command = ["convert", str(tmp_path / "ours"), str(tmp_path / "again"), "--to=huggingface"]
    assert main(command) == 0
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "again").eval()
    ids = torch.tensor(np.array(sources()["input_ids"])).long()
    with torch.no_grad():
        expected, found = (each(ids, decoder_input_ids=ids).logits for each in (model, again))
    assert torch.equal(found, expected)
    assert again.generation_config.decoder_start_token_id == again.config.decoder_start_token_id
    assert again.generation_config.eos_token_id == SEP
    jax.tree.map(
        np.testing.assert_array_equal, *(read(tmp_path / x).params for x in ("ours", "again"))
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer("the cat").input_ids == [CLS, VOCAB.index("the"), VOCAB.index("cat"), SEP]


def test_shared_weights_stay_shared(torch, theirs, tmp_path):
    """Transformers has no such models any more: it reads the weights twice."""
    import transformers

    model = read(theirs[1])
    shared = model.params | model.params["decoder"]
    del shared["decoder"]
    write_workdir(tmp_path / "ours", model._replace(params=shared))
    command = ["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to=huggingface"]
    assert main(command) == 0
    again = read(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, again.params, shared)
    other = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "theirs").eval()
    graphdef, params = ours(tmp_path / "ours")
    batch = with_targets(sources())
    logits = FineTuning(graphdef, Generation("cross_attention")).logits(params, batch)
    with torch.no_grad():
        expected = other(
            input_ids=torch.tensor(np.array(batch["input_ids"])).long(),
            attention_mask=torch.tensor(np.array(batch["segment_ids"])),
            decoder_input_ids=torch.tensor(np.array(batch["labels"][..., 0])).long(),
        ).logits.numpy()
    known = np.array(batch["labels"][..., 1] >= 0)
    np.testing.assert_allclose(logits[..., : len(VOCAB)][known], expected[known], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"model_type": "gpt2"}}, "model_type is 'gpt2'; only bert"),
        ({"decoder": {"model_type": "gpt2"}}, "encoder and decoder are bert and gpt2; only two of"),
        ({"decoder": {"num_hidden_layers": 3}}, "the encoder has num_layers=2, the decoder 3"),
        (
            {"decoder": {"add_cross_attention": False}},
            "decoder: is_decoder and add_cross_attention",
        ),
    ],
)
def test_other_models_are_refused(theirs, tmp_path, changes, message):
    shutil.copytree(theirs[1], tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    fields = json.loads(file.read_text())
    for half, values in changes.items():
        fields[half] |= values
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        read(tmp_path / "model")


def test_other_formats_are_refused(theirs, tmp_path, capsys):
    for verb in (
        ["convert", str(theirs[1]), str(tmp_path / "a"), "--to=google"],
        ["export", f"--model={theirs[1]}", f"--output={tmp_path / 'b'}"],
        ["export", f"--model={theirs[1]}", f"--output={tmp_path / 'b'}", "--to=onnx"],
    ):
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "cross_attention" in error


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_halves_of_roberta_are_exchanged(torch, tmp_path, name):
    import transformers

    fields = lineages.COMMON | lineages.FIELDS[name] | {"initializer_range": 0.3}
    halves = (transformers.CONFIG_MAPPING[name](**fields) for _ in range(2))
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    torch.manual_seed(0)
    model = transformers.EncoderDecoderModel(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    WordPiece(lineages.VOCAB, lowercase=True).save(epath.Path(tmp_path / "theirs"))
    graphdef, params = ours(tmp_path / "theirs")
    batch = with_targets(sources(length=9))
    batch["input_ids"] = jnp.maximum(batch["input_ids"] % len(lineages.VOCAB), 5)
    batch["labels"] = batch["labels"].at[..., 0].set(batch["input_ids"])
    inputs = torch.tensor(np.array(batch["input_ids"])).long()
    segments = torch.tensor(np.array(batch["segment_ids"]))
    logits = FineTuning(graphdef, Generation("cross_attention")).logits(params, batch)
    again = str(tmp_path / "again")
    assert main(["convert", str(tmp_path / "theirs"), again, "--to=huggingface"]) == 0
    known = np.array(batch["labels"][..., 2] > 0)
    for each in (model, transformers.EncoderDecoderModel.from_pretrained(again).eval()):
        with torch.no_grad():
            expected = each(inputs, attention_mask=segments, decoder_input_ids=inputs).logits
        found = logits[..., : len(lineages.VOCAB)]
        np.testing.assert_allclose(found[known], expected.numpy()[known], atol=2e-5)
