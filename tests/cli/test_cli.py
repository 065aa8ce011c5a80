"""The command line: each command's rows, and each bad input as one line, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import lipbridge
from lipbridge.cli.app import run
from lipbridge.files.modules import save
from lipbridge.vocabulary import Status
from tests.support import third_party
from tests.support.command_line import Answer, refused

BOUND_KEYS = {
    *("network", "verifier", "method", "side", "value", "proved", "norm", "region", "quantity"),
    *("seconds", "status", "tightness", "memory", "detail", "certified_accuracy"),
}


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process, with what it writes to the file descriptors themselves."""

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for digits as a folder, as training leaves it (but untrained)."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    torch.manual_seed(0)
    save(lipbridge.mlp([64, 8, 10], "abs", bias=False), folder)
    (folder / "run.json").write_text(json.dumps({"dataset": "digits", "result": {"accuracy": 0.5, "penalty": 0.1}}))
    lines = [{"epoch": e, "loss": 1 / e, "accuracy": 0.5, "bound": 2.0 * e} for e in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


# --- the application -------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys\nfrom lipbridge.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'jinja2', 'sklearn', 'cvxpy', 'onnx', 'pooch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "bound", "compare", "certify", "export", "verifiers", "data"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["train", "bound", "compare", "certify", "export", "verifiers", "data fetch"])
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    answer = cli(*command.split(), "--help")
    assert answer.code == 0
    assert "Usage: lipbridge" in answer.out


def test_version_and_no_command(cli: Cli) -> None:
    assert cli("--version").out == f"lipbridge {lipbridge.__version__}\n"
    assert "Usage:" in cli().out


@pytest.mark.parametrize("arguments", [["nonesuch"], ["--nonesuch"], ["bound"], ["bound", "m", "--time-limit", "long"]])
def test_usage_errors_are_one_line(cli: Cli, arguments: Sequence[str]) -> None:
    refused(cli(*arguments))


def test_the_module_runs_and_a_real_process_gets_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lipbridge", "bound", str(tmp_path / "absent"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_is_130(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lipbridge.study.single.bound_network", interrupt)
    answer = cli("bound", model, "--json")
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.strip() == "error: interrupted"


# --- verifiers and data ----------------------------------------------------------------------------------------------


def test_verifiers_lists_ours_and_theirs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    rows = {row["name"]: row for row in cli("verifiers", "--json").rows}
    assert rows["trivial"]["installed"]
    assert rows["honest"]["package"] == "their-verifiers"
    assert rows["absent"]["install"].startswith("pip install")
    assert not rows["absent"]["installed"]
    table = cli("verifiers").out
    assert "honest" in table
    assert "pip install a-package-that-nobody-has" in table


def test_verifiers_lists_the_options_of_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    (row,) = cli("verifiers", "lipsdp-fast", "--json").rows
    (gap,) = row["options"]
    assert gap == {"name": "gap", "type": "a number", "default": 5e-4, "help": gap["help"]}
    assert "relative distance" in cli("verifiers", "lipsdp-fast").out
    assert "of the trivial bound" in cli("verifiers", "honest").out
    assert "no options" in cli("verifiers", "trivial").err
    refused(cli("verifiers", "nonesuch"), "nonesuch", "lipsdp-fast")


def test_what_ended_short_comes_with_advice(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    answer = cli("bound", model, "--verifier", "raise,trivial")
    assert Status.FAILED.advice in answer.err
    assert Status.TIMEOUT.advice not in answer.err
    assert "failed: " not in cli("bound", model).err


def test_data_list_and_fetch(cli: Cli) -> None:
    rows = {row["name"]: row for row in cli("data", "list", "--json").rows}
    assert {"digits", "iris", "mnist", "fashion-mnist"} <= set(rows)
    assert rows["digits"]["where"] == "scikit-learn"
    assert "mnist" in cli("data", "list").out
    refused(cli("data", "fetch", "nonesuch", "--json"), "nonesuch", "mnist")
    refused(cli("data", "fetch", "digits"), "scikit-learn")


# --- bound -----------------------------------------------------------------------------------------------------------


def test_bound_has_a_complete_row(cli: Cli, model: Path) -> None:
    answer = cli("bound", model, "--json")
    (row,) = answer.rows
    assert answer.err == ""
    assert set(row) >= BOUND_KEYS
    expected = lipbridge.trivial_bound(lipbridge.load(model))
    assert row["value"] == expected.value
    assert (row["network"], row["verifier"], row["side"], row["proved"]) == ("small", "trivial", "upper", True)
    assert (row["norm"], row["region"], row["status"], row["tightness"]) == ("2", "everywhere", "ok", None)
    assert "trivial" in cli("bound", model / "model.safetensors").out


def test_bound_takes_norms_and_several_verifiers(cli: Cli, model: Path) -> None:
    (row,) = cli("bound", model, "--norm", "1", "--output-norm", "inf", "--json").rows
    assert row["norm"] == "1->inf"
    witness, trivial = cli(
        "bound", model, "--verifier", "witness,trivial", "--option", "witness.rounds=1", "--json"
    ).rows
    assert witness["side"] == "lower"
    assert trivial["tightness"] == pytest.approx(trivial["value"] / witness["value"])


def test_bound_tells_tightness_against_the_exact_constant(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lipbridge.save(lipbridge.mlp([2, 4, 2], "abs"), tmp_path / "small.safetensors")
    answer = cli("bound", str(tmp_path / "small.safetensors"), "--norm", "inf", "--verifier", "trivial,jacobian,exact")
    assert answer.code == 0
    assert "= " in answer.out
    assert "tightness is against the exact constant" in answer.err
    rows = json.loads(cli("bound", str(tmp_path / "small.safetensors"), "--verifier", "exact,trivial", "--json").out)
    assert rows[0]["side"] == "exact"
    assert rows[0]["tightness"] == pytest.approx(1.0, abs=1e-9)
    assert rows[1]["tightness"] == pytest.approx(rows[1]["value"] / rows[0]["value"], rel=1e-8)


def test_bound_of_a_margin(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = lipbridge.mlp([3, 6, 4], "relu")
    lipbridge.save(module, tmp_path / "small.safetensors")
    call = ("bound", tmp_path / "small.safetensors", "--norm", "inf", "--verifier", "jacobian")
    graph = lipbridge.capture(module).margins(1, [2])
    (row,) = cli(*call, "--margin", "1,2", "--json").rows
    assert row["network"] == "small, 1 less 2"
    problem = lipbridge.Problem(graph, lipbridge.Question.everywhere("inf"))
    assert row["value"] == lipbridge.get_verifier("jacobian").prepare(problem).bound(lipbridge.Budget()).value
    (every,) = cli(*call, "--margin", "1", "--json").rows
    assert every["value"] >= row["value"]
    refused(cli(*call, "--margin", "1,1"), "rivals", "other outputs")
    refused(cli(*call, "--margin", "1,9"), "rivals", "0 to 3")
    refused(cli(*call, "--margin", "one"), "--margin", "whole numbers")


def test_certify_by_local_constants(cli: Cli, model: Path) -> None:
    arguments = ("certify", str(model), "digits", "--radius", "0.1", "--points", "20", "--json")
    (local,) = json.loads(cli(*arguments, "--verifier", "jacobian").out)
    (known,) = json.loads(cli(*arguments).out)
    assert local["certified_accuracy"] >= known["certified_accuracy"]


def test_bound_in_balls(cli: Cli, model: Path) -> None:
    local = ("--radius", "0.05", "--points", "2", "--ball-norm", "inf")
    names = "witness,lipsdp-fast,eclipse-fast,trivial"
    rows = cli("bound", model, "--verifier", names, *local, "--option", "witness.rounds=1", "--json").rows
    witness, fast, closed, trivial = rows
    assert {row["region"] for row in (witness, fast, closed)} == {"2 linf balls, radius 0.05"}
    assert witness["value"] <= fast["value"] <= closed["value"] <= trivial["value"]
    everywhere = cli("bound", model, "--verifier", "lipsdp-fast", "--json").rows[0]
    assert fast["value"] < everywhere["value"]
    assert "local" in fast["method"]


def test_balls_need_data(cli: Cli, model: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((model / "model.safetensors").read_bytes())
    refused(cli("bound", alone, "--radius", "0.1"), "--data", "dataset")
    assert cli("bound", alone, "--radius", "0.1", "--data", "digits", "--verifier", "eclipse-fast").code == 0


def test_foreign_chatter_stays_off_stdout(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    answer = cli("bound", model, "--verifier", "honest", "--json")
    assert answer.rows[0]["status"] == "ok"
    assert "chatter on stdout" in answer.err
    assert "chatter from C" in answer.err


def test_without_any_value_the_exit_code_is_1(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    answer = cli("bound", model, "--verifier", "raise", "--json")
    assert (answer.code, answer.rows[0]["status"]) == (1, "failed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--norm", "3"], ["norm", "1, 2 or inf"]),
        (["--norm", "nan"], ["norm"]),
        (["--norm", "inf", "--output-norm", "1"], ["NP-hard"]),
        (["--verifier", "nonesuch"], ["nonesuch", "trivial"]),
        (["--verifier", ","], ["--verifier"]),
        (["--verifier", "absent"], ["pip install a-package-that-nobody-has"]),
        (["--verifier", "lipsdp", "--norm", "inf"], ["lipsdp"]),
        (["--time-limit", "0"], ["seconds"]),
        (["--time-limit", "nan"], ["seconds"]),
        (["--memory-limit", "lots"], ["--memory-limit"]),
        (["--option", "solver=SCS"], ["--option", "VERIFIER.NAME=VALUE"]),
        (["--verifier", "lipsdp-fast", "--option", "lipsdp-fast.gapp=3"], ["gapp", "Known: gap"]),
        (["--verifier", "lipsdp-fast", "--option", "lipsdp-fast.gap=3"], ["gap", "between 0 and 1"]),
        (["--option", "trivial.gap=3"], ["trivial", "gap", "none"]),
        (["--option", "lipsdpfast.gap=3"], ["lipsdpfast"]),
        (["--radius", "0"], ["--radius", "above 0"]),
        (["--radius", "nan"], ["--radius"]),
        (["--radius", "0.1", "--ball-norm", "3"], ["--ball-norm", "1, 2 or inf"]),
        (["--radius", "0.1", "--points", "0"], ["--points"]),
        (["--ball-norm", "2"], ["--ball-norm", "--radius"]),
        (["--data", "digits"], ["--data", "--radius"]),
    ],
)
def test_bad_options_of_bound(
    cli: Cli,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Sequence[str],
    words: Sequence[str],
) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    refused(cli("bound", model, *options, "--json"), *words)


def test_bad_model_files(cli: Cli, model: Path, tmp_path: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    cases = {"half": whole[: len(whole) // 2], "pickle": b"\x80\x04\x95", "empty": b"", "noise": b"\xff" * 100}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        refused(cli("bound", tmp_path / name, "--json"), name)
    refused(cli("bound", tmp_path / "nowhere"), "nowhere")
    refused(cli("bound", tmp_path), "model.safetensors")
    bad_run = tmp_path / "run"
    shutil.copytree(model, bad_run)
    (bad_run / "run.json").write_text("{")
    refused(cli("bound", bad_run), "run.json")


# --- certify ---------------------------------------------------------------------------------------------------------


def test_certify_has_a_row_for_each_radius(cli: Cli, model: Path) -> None:
    answer = cli("certify", model, "digits", "--radius", "0.001,0.1,5", "--points", 100, "--json")
    rows = answer.rows
    assert [row["radius"] for row in rows] == [0.001, 0.1, 5.0]
    shares = [row["certified_accuracy"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] <= rows[0]["accuracy"]
    assert shares[-1] == 0.0
    assert {row["points"] for row in rows} == {100}
    assert "certified" in cli("certify", model, "digits", "--radius", "0.1").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["digits", "--radius", "nan"], ["--radius"]),
        (["digits", "--radius", "0"], ["--radius"]),
        (["digits", "--radius", "-1"], ["--radius"]),
        (["digits", "--radius", "inf"], ["--radius"]),
        (["digits", "--radius", "0.1,x"], ["--radius"]),
        (["digits"], ["--radius"]),
        (["digits", "--radius", "0.1", "--points", "0"], ["--points"]),
        (["digits", "--radius", "0.1", "--norm", "7"], ["norm"]),
        (["digits", "--radius", "0.1", "--verifier", "witness"], ["witness", "certify"]),
        (["iris", "--radius", "0.1"], ["4 features", "64"]),
        (["nonesuch", "--radius", "0.1"], ["nonesuch"]),
    ],
)
def test_bad_options_of_certify(cli: Cli, model: Path, options: Sequence[str], words: Sequence[str]) -> None:
    refused(cli("certify", model, *options, "--json"), *words)


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_writes_rows_and_a_report_that_needs_nothing_else(cli: Cli, model: Path, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.html"
    limits = ["--time-limit", "3", "--points", "4", "--threads", "1"]
    answer = cli("compare", model, "--verifiers", "trivial", *limits, "--report", report, "--json")
    assert answer.code == 0
    rows = {row["verifier"]: row for row in answer.rows}
    assert set(rows) == {"witness", "trivial"}
    assert set(rows["trivial"]) >= BOUND_KEYS
    assert rows["trivial"]["tightness"] >= 1 - 1e-9
    assert rows["trivial"]["certified_accuracy"] is not None
    page = report.read_text()
    assert f"{rows['trivial']['value']:.6g}" in page
    assert page.count("<svg") == 2  # tightness, training
    addresses = {word for word in page.replace('"', " ").replace("'", " ").split() if "//" in word}
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert page.count("<script") == 2  # the rows and our own, and its policy forbids the rest
    assert "default-src 'none'" in page
    assert "script-src 'sha256-" in page
    assert "<link" not in page
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--verifiers", "trivial,nonesuch"], ["nonesuch"]),
        (["--verifiers", "absent"], ["pip install a-package-that-nobody-has"]),
        (["--norm", "two"], ["norm"]),
        (["--report", "."], ["report"]),
        (["--report", "/proc/nowhere/report.html"], ["report"]),
        (["--csv", "."], ["--csv", "not a folder"]),
        (["--latex", "/proc/nowhere/t.tex"], ["--latex"]),
        (["--radius", "nan"], ["--radius"]),
        (["--points", "0"], ["--points"]),
        (["--threads", "-1"], ["--threads"]),
        (["--data", "nonesuch"], ["nonesuch"]),
        (["--data", "iris"], ["4 features"]),
        (["--option", "nonesuch.x=1"], ["nonesuch"]),
        (["--verifiers", "lipsdp-fast", "--option", "lipsdp-fast.gapp=3"], ["gapp", "Known: gap"]),
        (["--verifiers", "trivial", "--option", "witness.rounds=many"], ["rounds"]),
        (["absent-model"], ["absent-model"]),
    ],
)
def test_bad_options_of_compare_are_found_before_anything_runs(
    cli: Cli,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Sequence[str],
    words: Sequence[str],
) -> None:
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path)))
    monkeypatch.setattr("lipbridge.study.comparison.compare_in_cells", lambda *_: pytest.fail("a cell was started"))
    refused(cli("compare", model, *options, "--json"), *words)


def test_networks_are_told_apart(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(cli("compare", model, model), "different networks")


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_writes_once(cli: Cli, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "small.onnx"
    (row,) = cli("export", model, "--to", "onnx", "--dialect", "native", "--out", out, "--json").rows
    assert (row["network"], row["format"], row["dialect"], row["file"]) == ("small", "onnx", "native", str(out))
    before = out.read_bytes()
    assert len(before) == row["bytes"]
    refused(cli("export", model, "--out", out), "--overwrite")
    assert out.read_bytes() == before
    assert cli("export", model, "--out", out, "--overwrite").code == 0
    assert out.read_bytes() != before


def test_export_for_the_matlab_lipsdp(cli: Cli, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    out = tmp_path / "small.mat"
    (row,) = cli("export", model, "--to", "mat", "--out", out, "--json").rows
    assert (row["network"], row["format"], row["file"], row["bytes"]) == ("small", "mat", str(out), out.stat().st_size)
    assert f"--alpha={row['alpha']!r} --beta={row['beta']!r} --weight-path {out}" in row["command"]
    again = cli("export", model, "--to", "mat", "--out", out, "--overwrite")
    assert again.code == 0
    assert row["command"] in again.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "pickle"], ["pickle", "onnx"]),
        (["--dialect", "klingon"], ["klingon", "relu, native"]),
        (["--out", "."], ["--out"]),
    ],
)
def test_bad_options_of_export(
    cli: Cli, model: Path, tmp_path: Path, options: Sequence[str], words: Sequence[str]
) -> None:
    out = tmp_path / "x.onnx"
    refused(cli("export", model, "--out", out, *options), *words)
    assert not out.exists()


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_then_resume_or_overwrite(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "iris-run"
    small = ["--widths", "8", "--activation", "abs", "--no-bias", "--penalty", "0.05", "--epochs", "2", "--seed", "3"]
    answer = cli("train", "iris", *small, "--form", "log", "--batch-size", "16", "--lr", "0.01", "--out", out, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.rows
    assert {"accuracy", "bound", "penalty", "seconds", "epochs"} <= set(row)
    assert (row["penalty"], row["epochs"], row["widths"], row["bias"]) == (0.05, 2, [8], False)
    (bound,) = cli("bound", out, "--json").rows
    assert bound["value"] == row["bound"]
    before = (out / "model.safetensors").read_bytes()
    refused(cli("train", "iris", *small, "--out", out), "--resume", "--overwrite")
    assert (out / "model.safetensors").read_bytes() == before
    same = ["--form", "log", "--batch-size", "16", "--lr", "0.01"]
    assert cli("train", "iris", *small, *same, "--out", out, "--resume", "--json").rows[0]["bound"] == row["bound"]
    assert cli("train", "iris", *small, *same, "--out", out, "--overwrite", "--json").rows[0]["bound"] == row["bound"]
    assert "accuracy" in cli("train", "iris", *small, "--out", tmp_path / "other").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonesuch"], ["nonesuch"]),
        (["iris", "--widths", "8,0"], ["--widths"]),
        (["iris", "--widths", "eight"], ["--widths"]),
        (["iris", "--widths=-8"], ["--widths"]),
        (["iris", "--activation", "nonesuch"], ["nonesuch", "abs"]),
        (["iris", "--start", "zero"], ["start", "orthogonal"]),
        (["iris", "--gain", "nan"], ["gain"]),
        (["iris", "--norm", "3"], ["norm"]),
        (["iris", "--form", "cubic"], ["cubic", "linear"]),
        (["iris", "--optimizer", "lion"], ["lion", "adam"]),
        (["iris", "--epochs", "0"], ["epochs"]),
        (["iris", "--batch-size", "0"], ["batch_size"]),
        (["iris", "--penalty", "nan"], ["penalty"]),
        (["iris", "--lr", "-1"], ["learning_rate"]),
        (["iris", "--shift", "1"], ["shift"]),
        (["iris", "--device", "abacus"], ["device"]),
        (["digits", "--arch", "conv-medium"], ["conv-medium", "conv-small", "FILE.py:FACTORY"]),
        (["digits", "--arch", "absent.py:make"], ["absent.py:make", "exists"]),
        (["digits", "--arch", "absent.py:make", "--activation", "abs"], ["activation", "absent.py:make"]),
        (["digits", "--arch", "conv-small", "--widths", "8"], ["widths", "2 convolutions of conv-small"]),
        (["iris", "--arch", "conv-small"], ["arch", "iris", "no images"]),
        (["digits", "--arch", "conv-small", "--padding", "reflect"], ["reflect", "circular", "zeros"]),
        (["iris", "--method", "svd"], ["svd", "gram"]),
        (["iris", "--every", "0"], ["every"]),
        (["iris", "--squarings", "11"], ["squarings"]),
        (["iris", "--stride", "0"], ["stride"]),
        (["iris", "--warmup", "1"], ["warmup"]),
        (["iris", "--label-smoothing", "1.5"], ["label_smoothing"]),
        (["iris", "--resume"], ["resume"]),
        (["iris", "--resume", "--overwrite"], ["resume"]),
    ],
)
def test_bad_options_of_train_write_nothing(
    cli: Cli, tmp_path: Path, arguments: Sequence[str], words: Sequence[str]
) -> None:
    out = tmp_path / "out"
    refused(cli("train", *arguments, "--out", out, "--json"), *words)
    assert not out.exists()


def test_train_a_convolutional_network(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [
        "--arch",
        "conv-small",
        "--activation",
        "crelu",
        "--widths",
        "4,4,8",
        "--epochs",
        "2",
        "--batch-size",
        64,
    ]
    answer = cli("train", "digits", *options, "--out", out, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.rows
    assert (row["arch"], row["widths"], row["activation"], row["norm"]) == ("conv-small", [4, 4, 8], "crelu", "2")
    assert cli("bound", out, "--json").rows[0]["value"] == row["bound"]
    (again,) = cli("train", "digits", *options, "--out", out, "--resume", "--json").rows
    assert again["bound"] == row["bound"]
    refused(cli("train", "digits", *options, "--activation", "sincos", "--out", out, "--resume"), "another network")
    assert "conv-small" in cli("train", "digits", *options, "--out", out, "--overwrite").out


def test_train_a_network_of_ones_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(shape[0], 3, 3, 2), nn.Linear(27, classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.conv(x).abs().flatten(1))\n"
        "def broken(shape, classes):\n"
        "    return nn.Linear(64, 3)\n"
    )
    out, own = tmp_path / "run", f"{tmp_path / 'own.py'}:Own"
    options = ["--arch", own, "--epochs", "2"]
    (row,) = cli("train", "digits", *options, "--out", out, "--json").rows
    assert (row["arch"], row["widths"], row["activation"]) == (own, None, None)
    assert cli("bound", out, "--json").rows[0]["value"] == row["bound"]
    assert cli("train", "digits", *options, "--out", out, "--resume", "--json").rows[0]["bound"] == row["bound"]
    assert "own.py:Own" in cli("train", "digits", *options, "--out", out, "--overwrite").out
    refused(cli("train", "digits", "--arch", f"{tmp_path / 'own.py'}:broken", "--out", tmp_path / "b"), "shape (2, 3)")
    assert not (tmp_path / "b").exists()


def test_damaged_data_is_refused(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x03\xff")
    refused(cli("train", folder, "--out", tmp_path / "out"), "ubyte")
    assert not (tmp_path / "out").exists()
