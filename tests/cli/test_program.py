"""The program as a whole: errors, help, version, the list of solvers, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import alignkit
from alignkit.cli import app
from helpers.command_line import run
from helpers.weight_files import JOBS


def test_debug_shows_where_an_error_comes_from(folder: Path) -> None:
    arguments = ["--debug", "solve", "nowhere.pt", "nowhere.pt", "--spec", "x", "-o", str(folder / "y.pt")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, alignkit.AlignkitError)


def test_every_registered_solver_is_listed() -> None:
    printed = run("solvers")
    assert all(name in printed for name in alignkit.list_solvers())
    listed = json.loads(run("solvers", "--json"))
    assert [entry["name"] for entry in listed] == sorted(alignkit.list_solvers())
    options = next(entry["options"] for entry in listed if entry["name"] == "weight_matching")
    assert "description" in options["properties"]["restarts"]


def test_one_solver_with_its_options() -> None:
    printed = run("solvers", "weight_matching")
    assert "patience" in printed
    assert "Needs weights" in printed
    assert json.loads(run("solvers", "weight_matching", "--json"))["name"] == "weight_matching"
    assert "Did you mean 'weight_matching'?" in run("solvers", "weight_match", code=2)


@pytest.mark.parametrize(
    ("words", "completed"), [("alignkit canonicali", "canonicalize"), ("alignkit merge --mem", "--memory")]
)
def test_the_shell_completes_commands_and_options(words: str, completed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COMP_WORDS", words), ("COMP_CWORD", str(words.count(" ")))):
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, env={"_ALIGNKIT_COMPLETE": "complete_bash"}, prog_name="alignkit")
    assert result.output.split() == [completed]


@pytest.mark.parametrize("name", [command.name or command.callback.__name__ for command in app.registered_commands])
def test_help_breaks_no_name_at_80_columns(name: str) -> None:
    printed = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    missing = [option for p in command.params for option in (*p.opts, *p.secondary_opts) if option not in printed]
    assert [option for option in missing if option.startswith("--")] == []
    assert max(map(len, printed.splitlines())) <= 80


def test_version() -> None:
    assert run("--version").startswith(f"alignkit {alignkit.__version__} ")


def test_python_runs_it_as_a_module() -> None:
    said = subprocess.run([sys.executable, "-m", "alignkit", "solve"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 2
    assert "Usage: python -m alignkit solve" in said.stderr


@pytest.mark.parametrize("command", [[], *([info.name] for info in app.registered_commands)], ids=str)
def test_every_help_starts_with_an_example(command: list[str]) -> None:
    printed = run(*command, "--help")
    assert f"Example: alignkit {' '.join(command)}".rstrip() in printed
    assert printed.index("Example:") < printed.index("Options")


@pytest.mark.slow
def test_the_installed_program_ends_with_an_exit_code_and_no_traceback() -> None:
    call = [sys.executable, "-c", "from alignkit.cli import main; main()", "solve", "a.pt", __file__, "--spec", "s"]
    done = subprocess.run([*call, "-o", "out.txt"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --output out.txt: end its name in")
    assert done.stdout == ""


def test_exit_codes_are_told() -> None:
    said = " ".join(run("--help").split())
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    for code in ("0", "1", "2", "3", "130"):
        assert code in said.split("Exit codes:")[1].split("Options")[0]
        assert f"| {code} |" in page


SOLVING = {job: call for job, (call, _) in JOBS.items() if job not in ("check", "canonical-form")}
WRONG_NAMES = {
    "solver": ["--solver", "weight_machting"],
    "chain": ["--solver", "identity > nothing"],
    "empty stage": ["--solver", "identity >"],
    "option": ["--option", "restart=3"],
    "value": ["--option", "restarts=many"],
    "range": ["--option", "restarts=-1"],
    "no value": ["--option", "restarts"],
    "task": ["--task", "job_nets:nothing"],
    "data": ["--task", "nothing.csv"],
    "no data": ["--solver", "activation_matching"],
    "symmetries": ["--symmetries", "some"],
    "device": ["--device", "abacus"],
    "dtype": ["--dtype", "float33"],
    "output": ["--save-alignment", "nowhere/al.safetensors"],
    "suffix": ["--save-alignment", "al.json"],
    "report": ["--report", "r.pdf"],
}


@pytest.mark.parametrize("wrong", WRONG_NAMES)
@pytest.mark.parametrize("job", SOLVING)
def test_what_no_command_line_can_mean_ends_with_2(job: str, wrong: str, folder: Path) -> None:
    call = [word for word in SOLVING[job] if word not in ("--solver", "weight_matching")]
    switches = WRONG_NAMES[wrong]
    if wrong == "no data" and job == "compare":
        pytest.skip("a solver that cannot run is a row of the comparison")
    call = [word if word not in ("--spec",) else "--model" for word in call]
    call = [word if word != "spec.json" else "job_nets:net" for word in call]
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    }
    said = run(*call, *switches, code=2)
    assert "Error" in said
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)}
    assert after == before


@pytest.mark.parametrize("job", SOLVING)
def test_networks_that_cannot_be_read_end_with_1(job: str, folder: Path) -> None:
    (folder / "b.safetensors").write_bytes(b"no tensors")
    run(*SOLVING[job], code=1)
    (folder / "b.safetensors").unlink()
    run(*SOLVING[job], code=1)


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_usage_lines_have_arguments_in_capitals(name: str) -> None:
    usage = run(name, "--help").splitlines()[0]
    arguments = usage.partition("[OPTIONS]")[2]
    assert arguments == arguments.upper()


@pytest.mark.parametrize("name", [command.name for command in app.registered_commands])
def test_usage_lines_have_no_braces(name):
    usage = run(name, "--help").splitlines()[0]
    assert usage.startswith(f"Usage: alignkit {name}") or name in usage
    assert "{" not in usage
