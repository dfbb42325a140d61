"""The command line, from help to a trained model in use."""

import errno
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from matplotlib import image

from bert_jax import __version__, terminal
from bert_jax.__main__ import VERBS, main
from bert_jax.cli import compiled_programs
from bert_jax.config.saved import read_pretrain_config
from bert_jax.inference.trained import load
from bert_jax.model.model import build_model
from bert_jax.parallel import hosts
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.profiling import PROFILED_STEPS
from bert_jax.train.starts import read_starts

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
HELP = {
    "prepare": ("Tokenise a corpus once", "corpus:sotu", "--vocab-size N", "examples:"),
    "inspect": ("what is in", "STORE", "--verify", "--output"),
    "pretrain": (
        *("Pretrains BERT", "--config RECIPE[:ARG]", "--workdir DIR", "Exit code 75"),
        f"the next {PROFILED_STEPS} steps are profiled",
    ),
    "finetune": ("Fine-tunes", "--config RECIPE[:ARG]", "--workdir DIR", "Exit code 75", "best"),
    "convert": ("SOURCE is one of", "--to", "--initialise PART,...", "--no-strict", "--uncased"),
    "evaluate": ("held-out documents", "--workdir DIR", "--step N", "--store [NAME=]DIR"),
    "predict": ("fill-mask", "guess the words behind [MASK]"),
    "predict fill-mask": ("every [MASK] of a text", "--top-k K", "example: bert-jax predict"),
    "predict next-sentence": ("that B follows A", "--model DIR", "--skip-bad-lines"),
    "predict features": ("into vectors", "--pooling", "--layers", "--output FILE", "FILE, or text"),
    "predict attention": ("of a pair of texts", "TEXT [SECOND_TEXT]", "--output FILE.html"),
    "predict classify": ("fine-tuned classifier", "--model DIR", "FILE, or text", "examples:"),
    "predict tag": ("entities", "--max-seq-length N", "examples: bert-jax predict tag"),
    "predict answer": ("(text_a) on a context (text_b)", "--unanswerable", "--null-threshold X"),
    "plot": ("losses and accuracies", "WORKDIR", "--output FILE.png"),
    "publish": ("the Hugging Face Hub", "WORKDIR", "OUTPUT", "--upload OWNER/NAME", "--license ID"),
    "report": ("HTML page about training runs", "WORKDIR", "--output FILE.html", "--text TEXT"),
    "sweep": ("every combination", "--grid FIELD=VALUE,...", "--seeds N", "--gpus N", "examples:"),
    "export": ("StableHLO", "--model DIR", "--to", "--platforms NAMES", "examples:"),
    "prune": ("least important", "--data SOURCE", "--heads SHARE", "--layers N", "example:"),
    "plan": ["--config", "--topology", "--slices", "--search", "--output"],
}


def test_help_lists_the_verbs(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert f"bert-jax {__version__}" in printed
    assert all(f"  {verb} " in printed and purpose in printed for verb, purpose in VERBS.items())


def test_nothing_asked_shows_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage: bert-jax VERB" in capsys.readouterr().out


@pytest.mark.parametrize("command", HELP)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"usage: bert-jax {command} ")
    for part in HELP[command]:
        assert part in printed


def test_help_is_complete():
    assert {command.split()[0] for command in HELP} == set(VERBS)


def test_as_a_process():
    command = [sys.executable, "-m", "bert_jax"]
    process = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0
    assert "usage: bert-jax VERB" in process.stdout
    process = subprocess.run([*command, "plot", "none"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("bert-jax plot: error: none/metrics.jsonl: no such file")
    assert process.stderr.count("\n") == 1


def test_a_reader_may_end_early(capfd, monkeypatch):
    """As in `bert-jax predict ... | head`; the rest of the output goes nowhere."""

    def write(argv):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    keep = os.dup(1)
    monkeypatch.setattr("bert_jax.cli.plot.main", write)
    try:
        assert main(["plot", "run"]) == 141
    finally:
        os.dup2(keep, 1)
    assert capfd.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(monkeypatch, capsys):
    def done(label):
        with terminal.progress(label, 2000) as bar:
            for _ in range(2):
                bar.update(1000)
                bar.note("2 documents")

    done("words")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(terminal, "_SECONDS_PER_LINE", 0)
    done("words")
    lines = capsys.readouterr().err
    assert re.fullmatch(r"(words: \S+ of 2\.00kB in \d\d:\d\d(, 2 documents)?\n)+", lines)
    assert re.findall(r"words: (\S+) of", lines) == [
        "1.00kB", "2.00kB", "2.00kB",
    ]  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done("words")
    assert "\rwords: 100%" in capsys.readouterr().err


def test_quiet_leaves_out_progress(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_quiet", False)
    monkeypatch.setattr(terminal, "_SECONDS_PER_LINE", 0)
    terminal.be_quiet()
    with terminal.progress("words", 2000) as bar:
        bar.update(2000)
    with hosts.waiting("compiling"):
        hosts.print_once("step 1")
    hosts.print_once("step 2 held-out", result=True)
    terminal.say_progress("compiled")
    terminal.say("curves.png")
    assert capsys.readouterr() == ("step 2 held-out\ncurves.png\n", "")


@pytest.mark.parametrize("verb", [*VERBS, "predict fill-mask"])
def test_every_verb_takes_quiet_or_verbose(verb, monkeypatch, capsys):
    """What one of them does is done before the verb is."""
    done = []
    for name in ("be_quiet", "be_verbose"):
        monkeypatch.setattr(f"bert_jax.cli.flags.{name}", lambda name=name: done.append(name))
    for flags in (["--quiet"], ["--verbose"], ["--quiet", "--verbose"]):
        with pytest.raises(SystemExit):
            main([*verb.split(), *flags, "--help"])
    assert done == ["be_quiet", "be_verbose", "be_quiet"]
    assert "not allowed with argument --quiet" in capsys.readouterr().err


def test_verbose_shows_what_libraries_log():
    code = (
        "import logging, sys; from bert_jax.__main__ import main; main(['plot', *sys.argv[1:]]);"
        "from bert_jax.train import checkpoints; log = logging.getLogger('absl'); log.info('told');"
        "record = log.makeRecord('absl', logging.INFO, '/orbax/save.py', 1, 'kept', (), None);"
        "log.handle(record); logging.getLogger('jax').debug('no')"
    )
    for flags, told in ((["none"], []), (["none", "--verbose"], ["told", "kept"])):
        command = [sys.executable, "-c", code, *flags]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        error, *lines = run.stderr.splitlines()
        assert "none/metrics.jsonl: no such file" in error
        assert [line for line in lines if line in ("told", "kept", "no")] == told


def test_warnings_of_the_library_are_plain_lines():
    code = (
        "import logging, bert_jax; bert_jax.load; from bert_jax.train import checkpoints; "
        "logging.getLogger('bert_jax.any').warning('told')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "told\n")


def write_metrics(workdir: Path, *, pairs: bool = True) -> None:
    """A run whose loss falls and whose accuracy rises."""
    lines = [{"step": 0, "split": "baseline", "mlm_loss": 6.0, "mlm_accuracy": 0.06}]
    for step in range(10, 101, 10):
        line = {"step": step, "mlm_loss": 4 + 40 / step, "mlm_accuracy": step / 400}
        lines += [line | {"split": "train"}, line | {"split": "heldout"}]
    if pairs:
        lines = [line | {"nsp_loss": 0.69, "nsp_accuracy": 0.5} for line in lines]
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_plot(tmp_path, capsys):
    write_metrics(tmp_path / "one")
    assert main(["plot", str(tmp_path / "one")]) == 0
    picture = tmp_path / "one" / "curves.png"
    assert capsys.readouterr().out.strip() == str(picture)
    height, width, _ = image.imread(picture).shape
    assert width > height > 400

    write_metrics(tmp_path / "two", pairs=False)
    both = tmp_path / "both.png"
    workdirs = [str(tmp_path / "two"), str(tmp_path / "one")]
    assert main(["plot", *workdirs, f"--output={both}"]) == 0
    assert image.imread(both).shape[0] < height, "no panels for what the first run has not"
    pixels = (image.imread(both)[..., :3] * 255).round().astype(int)
    colors = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert {(31, 119, 180), (255, 127, 14)} <= colors, "a color for each run"


class FakeHub:
    """Records what is called."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *given, **options: self.calls.append((name, *given, options))


def test_from_text_to_words(tmp_path, capsys, monkeypatch):
    """Every verb in turn, each on what the one before it left."""
    words = ["sea", "sky", "sun", "moon", "rain", "wind", "snow", "star"]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {word} is wide.\n" * 8 for word in words))
    store, workdir = tmp_path / "store", tmp_path / "run"
    command = ["prepare", str(text), f"--output={store}", "--vocab-size=60", "--workers=1"]
    assert main(command) == 0
    vocab = (store / "vocab.txt").read_text().split()

    overrides = {
        "steps": 2,
        "data.store": store,
        "data.batch_size": 8,
        "data.max_seq_length": 16,
        "model.vocab_size": len(vocab),
        "model.num_layers": 1,
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
    }
    flags = [f"--config.{field}={value}" for field, value in overrides.items()]
    recipe = f"--config={ROOT / 'configs' / 'bert.py'}:tiny"
    capsys.readouterr()
    monkeypatch.setattr(terminal, "_quiet", False)  # so that it is restored
    assert main(["pretrain", recipe, f"--workdir={workdir}", "--quiet", *flags]) == 0
    monkeypatch.undo()
    told = capsys.readouterr()
    baseline, *_, last = read_metrics(workdir)
    (line,) = [line for line in told.out.splitlines() if not line.startswith("Warning: ")]
    assert re.fullmatch(rf"step 2 held-out  loss {last['loss']:.4g}  .*  \d:\d\d", line)
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"step": 2, "split": "heldout"} | scores["heldout"] == last
    assert {"step": 0, "split": "baseline"} | scores["baseline"] == baseline
    # Several stores by name; here the same one.
    stores = [f"--store=own={store}", f"--store=again={store}"]
    assert main(["evaluate", f"--workdir={workdir}", stores[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 2
    tokens = found["stores"]["own"]["heldout"].pop("tokens")
    assert found["stores"]["own"] == {name: scores[name] for name in ("heldout", "baseline")}
    assert main(["evaluate", f"--workdir={workdir}", *stores]) == 0
    header, own, again = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["step", "2", "mlm", "loss", "unigram", "perplexity", "accuracy", "tokens"]
    assert own[1:] == again[1:]
    shown = f"{scores['heldout']['mlm_loss']:.4f} {scores['baseline']['mlm_loss']:.4f}"
    assert " ".join(own).startswith(f"own {shown} ")
    assert own[-1] == f"{tokens:,.0f}"
    for wrong in ([f"--store={store}", stores[0]], [stores[0], stores[0]]):
        assert main(["evaluate", f"--workdir={workdir}", *wrong]) == 2
        assert "give each of several stores its own name, NAME=DIR" in capsys.readouterr().err

    masked = "The [MASK] is [MASK]."
    assert main(["predict", "fill-mask", f"--model={workdir}", "--top-k=3", masked]) == 0
    first, *masks = capsys.readouterr().out.splitlines()
    assert first == masked
    assert len(masks) == 2
    for guesses in masks:
        fields = guesses.split()
        assert set(fields[::2]) <= set(vocab)
        shares = [float(share.removesuffix("%")) for share in fields[1::2]]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)

    assert main(["report", str(workdir), f"--text={masked}"]) == 0
    path = workdir / "report.html"
    assert capsys.readouterr().out.splitlines() == [str(path)]
    page = path.read_text()
    assert f"<h1>{workdir}</h1>" in page
    assert f"<td>{last['mlm_loss']:.4g} (unigram distribution {baseline['mlm_loss']:.4g})" in page
    words = [re.escape(line.split()[0]) for line in masks]
    assert re.search(rf"<td>{words[0]} \d+%, [^;]*; {words[1]} \d+%, [^;]*</td>", page)
    (start,) = read_starts(workdir)
    assert (start["step"], start["processes"]) == (0, 1)
    assert start["libraries"]["jax"] == version("jax")
    assert f"Python {start['python']}" in page

    public, hub = tmp_path / "public", FakeHub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    command = ["publish", str(workdir), str(public), "--upload=me/mine", "--license=mit"]
    assert main([*command, "--language=en,de"]) == 0
    revisions = ["main", "step-0", "step-2"]
    assert capsys.readouterr().out.splitlines() == [f"{public}/{name}" for name in revisions]
    assert [(call[0], call[-1].get("revision", call[-1].get("branch"))) for call in hub.calls] == [
        *(("create_repo", None), ("upload_folder", "main")),
        *(("create_branch", "step-0"), ("upload_folder", "step-0")),
        *(("create_branch", "step-2"), ("upload_folder", "step-2")),
    ]
    card = (public / "main" / "README.md").read_text()
    assert card.startswith(
        '---\nlicense: mit\nlanguage: ["en", "de"]\nlibrary_name: transformers\n'
    )
    assert f"| Masked LM loss (nats) | {last['mlm_loss']:.4g} | {baseline['mlm_loss']:.4g} " in card
    assert "- source: text.txt (sha256 " in card
    assert "| step-0 |  |  |\n| step-2 | " in card
    monkeypatch.undo()
    config = read_pretrain_config(epath.Path(workdir) / "config.json")
    fresh = build_model(config.model, config.numerics)
    first = jax.jit(fresh.init)(jax.random.key(config.seed))
    expected = {"main": load(workdir).params, "step-2": load(workdir).params, "step-0": first}
    for revision, params in expected.items():  # but for the rows that pad the vocabulary
        found = load(public / revision).params
        jax.tree.map(
            np.testing.assert_array_equal, params["bert"]["encoder"], found["bert"]["encoder"]
        )
    assert main(command) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The folder of compiled programs of a user without settings; environment as before after."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is restored, even if the test sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bert_jax" / "compiled"


def test_compiled_programs_are_kept(compiled):
    script = (
        "from bert_jax.cli import compiled_programs; compiled_programs.keep(); import jax;"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0);"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1);"
        "print(jax.jit(lambda x: x * 2 + 1)(3))"
    )
    kept = []
    for _ in range(2):
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        assert (found.stdout, found.stderr) == (b"7\n", b"")
        (folder,) = compiled.iterdir()
        kept.append({path: path.stat().st_mtime_ns for path in folder.glob("*-cache")})
    assert kept[0]
    assert kept[1] == kept[0]  # the second process found them


def test_compiled_programs_that_a_killed_process_left_are_removed(compiled):
    compiled_programs.keep()
    (folder,) = compiled.iterdir()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(4 * 2**30)
    for name in ("torn-cache", "whole-cache", "whole-atime"):
        (folder / name).write_bytes(b"")
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    compiled_programs.keep()
    assert {path.name for path in folder.iterdir()} - {".lockfile"} == {
        "whole-cache",
        "whole-atime",
    }


@pytest.mark.parametrize("folder", ["", "/elsewhere"])
def test_the_folder_of_the_user_is_taken(compiled, monkeypatch, folder):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    compiled_programs.keep()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == folder
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert not compiled.exists()


@pytest.mark.parametrize("caches", ["gs://bucket/cache", "/proc/none"])
def test_no_programs_are_kept_where_none_can_be(compiled, monkeypatch, caches):
    monkeypatch.setenv("XDG_CACHE_HOME", caches)
    compiled_programs.keep()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
