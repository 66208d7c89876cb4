"""Kinds of checkpoints in the plan: every wrong combination has its line, its key and a remedy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.commands.preview import preview_plan
from harness.errors import PlanError
from harness.forecast.cost import cost
from harness.plan import make_plan, resolve_plan
from harness.planning import checkpoints
from harness.planning.specs import Plan

pytest.importorskip("gguf")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of every kind. They are empty: the plan does not look into them. All libraries are there."""
    (tmp_path / "q4.gguf").touch()
    for name in ("model", "adapter", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "q8.gguf").touch()
    for name in checkpoints.ADAPTER_FILES:
        (tmp_path / "adapter" / name).touch()
    (tmp_path / "half" / "adapter_config.json").touch()
    installed(monkeypatch)
    return tmp_path


def installed(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name in missing else real("json") if name in ("llama_cpp", "gguf", "peft") else real(name)

    monkeypatch.setattr(checkpoints, "find_spec", find)


def write(folder: Path, variant: dict[str, Any], **reference: Any) -> Path:
    content = {
        "name": "tried",
        "reference": {"model": "pocket", **reference},
        "variant": variant,
        "suites": ["./suite.yaml"],
        "gates": ["./gate.yaml"],
    }
    (folder / "suite.yaml").write_text("documents: {data: pocket-heldout, max: 8}\nmeasures: [divergence]\n")
    rule = "{rule: at_most, metric: divergence.kl_mean, limit: 1.0, why: any number}"
    (folder / "gate.yaml").write_text(f"rules:\n  - {rule}\n")
    path = folder / "variant.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def planned(folder: Path, variant: dict[str, Any], **reference: Any) -> Plan:
    return make_plan(write(folder, variant, **reference))


def problem(folder: Path, variant: dict[str, Any], **reference: Any) -> str:
    path = write(folder, variant, **reference)
    with pytest.raises(PlanError) as caught:
        make_plan(path)
    (found,) = caught.value.problems
    assert found.line is not None
    assert found.key.rpartition(".")[2] in path.read_text().splitlines()[found.line - 1]
    return str(found).partition("variant.yaml:")[2].partition(": ")[2]


def test_files_become_absolute_and_are_recorded(folder: Path) -> None:
    direct = planned(folder, {"model": "q4.gguf"})
    assert direct.variant.model == str(folder / "q4.gguf")
    inside = planned(folder, {"model": "./model", "file": "q8.gguf", "tokenizer": "reference"})
    assert (inside.variant.model, inside.variant.file) == (str(folder / "model" / "q8.gguf"), None)
    assert resolve_plan(inside)["variant"]["tokenizer"] == "reference"
    hub = planned(folder, {"model": "owner/name-GGUF", "file": "x.Q4_K_M.gguf"})
    assert (hub.variant.model, hub.variant.file) == ("owner/name-GGUF", "x.Q4_K_M.gguf")
    adapted = planned(folder, {"adapter": "adapter", "merge": True})
    assert (adapted.variant.adapter, adapted.variant.merge) == (str(folder / "adapter"), True)
    assert planned(folder, {"model": "q4.gguf", "engine": "llama_cpp"}).variant.engine.kind == "llama_cpp"


STEP = [{"backend": "round_to_nearest", "bits": 4}]
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"model": "./q5.gguf"}, {}, r"variant.model: found './q5.gguf': no such file"),
    ({"model": "./model", "file": "q9.gguf"}, {}, "variant.file: found 'q9.gguf': no such file"),
    ({"model": "./model", "file": "../q4.gguf"}, {}, "variant.file: found '../q4.gguf' (text), expected the name"),
    ({"model": "owner/name", "file": "x.bin"}, {}, "variant.file: found 'x.bin' (text), expected the name"),
    ({"model": "q4.gguf", "file": "x.gguf"}, {}, "variant.file: found 'x.gguf' (text), but model is a GGUF file"),
    ({"file": "x.gguf"}, {}, "variant.file: found 'x.gguf' (text), but model is 'reference'"),
    ({"model": "q4.gguf", "revision": "main"}, {}, "variant.revision: found 'main' (text), expected no revision"),
    (
        {"model": "q4.gguf", "trust_remote_code": True},
        {},
        "variant.trust_remote_code: found true, expected false: a GGUF file brings no code",
    ),
    ({"model": "./model", "engine": "llama_cpp"}, {}, "variant.engine: found llama_cpp with "),
    ({"engine": "llama_cpp"}, {}, "variant.engine: found llama_cpp with reference, expected a GGUF file"),
    (
        {"engine": "lama_cpp"},
        {},
        "one of llama_cpp, transformers (did you mean llama_cpp?)",
    ),
    ({"engine": 4}, {}, "variant.engine: found 4 (a number), expected the name of an engine: llama_cpp, transformers"),
    (
        {"engine": {"name": "transformers"}},
        {},
        "variant.engine: found a mapping with 'name' and no engine",
    ),
    ({"engine": {"engine": "transformers", "threads": 2}}, {}, "engine.threads: found the unknown key 'threads'"),
    (
        {"model": "q4.gguf", "engine": "vllm"},
        {},
        "variant.engine: found 'vllm', expected one of llama_cpp, transformers",
    ),
    (
        {"model": "q4.gguf", "engine": "llama_cpp", "compress": STEP},
        {},
        "variant.compress: found round_to_nearest, but engine is llama_cpp, which gives no access to weights",
    ),
    (
        {"model": "q4.gguf", "engine": "llama_cpp", "dtype": "bfloat16"},
        {},
        "variant.dtype: found 'bfloat16' (text) with engine llama_cpp",
    ),
    (
        {"model": "q4.gguf", "engine": "llama_cpp"},
        {"dtype": "bfloat16"},
        "reference.dtype: found bfloat16 with engine llama_cpp, whose logits are float32, expected float32",
    ),
    (
        {"model": "q4.gguf", "engine": "llama_cpp"},
        {"device": "cuda"},
        "variant.engine: found llama_cpp, which runs on cpu, but the reference is on cuda",
    ),
    ({"tokenizer": "reference"}, {}, "variant.tokenizer: found reference, but the variant is made from the reference"),
    ({"merge": True}, {}, "variant.merge: found true (a truth value) and no adapter, expected an adapter to merge"),
    (
        {"model": "q4.gguf", "adapter": "adapter"},
        {},
        "variant.adapter: found an adapter on the GGUF file q4.gguf, expected a model in the format of transformers",
    ),
    ({"adapter": "nothing"}, {}, "variant.adapter: found 'nothing': no such folder"),
    ({"adapter": "half"}, {}, "variant.adapter: found 'half', which has no adapter_model.safetensors"),
    ({"adapter": "q4.gguf"}, {}, "variant.adapter: found 'q4.gguf': no such folder"),
]


@pytest.mark.parametrize(("variant", "reference", "said"), WRONG, ids=[said[:60] for _, _, said in WRONG])
def test_wrong_combinations_are_refused_with_line_key_and_remedy(
    variant: dict[str, Any], reference: dict[str, Any], said: str, folder: Path
) -> None:
    assert said in problem(folder, variant, **reference)


@pytest.mark.parametrize(
    ("library", "variant", "install"),
    [
        ("gguf", {"model": "q4.gguf"}, 'pip install "lm-shipcheck[gguf]"'),
        ("llama_cpp", {"model": "q4.gguf", "engine": "llama_cpp"}, 'pip install "lm-shipcheck[llamacpp]", which'),
        ("peft", {"adapter": "adapter"}, "pip install peft"),
    ],
)
def test_a_missing_library_is_said_before_anything_is_loaded(
    library: str, variant: dict[str, Any], install: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, library)
    assert install in problem(folder, variant)


def test_a_reference_that_is_a_gguf_file_needs_the_library_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "gguf")
    assert problem(folder, {"model": "./model"}, model="q4.gguf") == (
        "reference.model: found a GGUF file, but the library gguf is not installed, expected the library that reads it "
        '(pip install "lm-shipcheck[gguf]")'
    )


def test_steps_on_a_dequantized_file_are_allowed(folder: Path) -> None:
    cache = [{"backend": "kv_cache", "bits": 8}]
    assert planned(folder, {"model": "q4.gguf", "compress": cache}).variant.compress


# --- what is shown ------------------------------------------------------------------------------------------


def test_the_preview_shows_and_counts_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers.gguf_files import write_gguf
    from tests.helpers.tiny_models import tiny_llama

    model = tiny_llama(intermediate_size=96)
    path = write_gguf(model, folder / "q8.gguf", "Q8_0")
    plan = planned(folder, {"model": "q8.gguf"})
    floats = cost(plan, None).memory
    codes = cost(planned(folder, {"model": "q8.gguf", "engine": "llama_cpp"}), None).memory
    assert floats is not None
    assert codes is not None
    assert floats - codes == 4 * model.num_parameters() - path.stat().st_size
    assert preview_plan(folder / "variant.yaml", None, folder / "runs") == 0
    assert "q8.gguf: 0.0" in capsys.readouterr().out
    write(folder, {"adapter": "adapter"})
    assert preview_plan(folder / "variant.yaml", None, folder / "runs") == 0
    assert f"adapter      {folder / 'adapter'}, attached, not merged" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_costs_nothing_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, {"model": "q4.gguf"})
    assert preview_plan(folder / "variant.yaml", None, folder / "runs") == 0
    assert "damaged, truncated" in capsys.readouterr().out
