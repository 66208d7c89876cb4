"""Made-up tables of a four-layer model, 200 documents and nine tasks; ``scale`` is the size of the damage."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

KINDS = ("story", "tale", "recall", "sums", "requests", "prose", "copy")
TASKS = (
    "pocket_facts",
    "pocket_two_hop",
    "pocket_crowd",
    "pocket_recall",
    "pocket_recall_far",
    "pocket_sums",
    "pocket_sums4",
    "pocket_requests",
    "pocket_prose",
)
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class MadeTables:
    """Tables held in memory."""

    def __init__(self, frames: Mapping[str, pd.DataFrame], suite: str = "core") -> None:
        self.frames, self.suite = dict(frames), suite

    def suites(self) -> tuple[str, ...]:
        return (self.suite,) if self.frames else ()

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        frame = self.frames.get(table) if suite == self.suite else None
        return frame if frame is None or columns is None else frame[list(columns)]


def make_tables(
    rng: np.random.Generator, scale: float, documents: int, length: int, layers: int, items: int
) -> dict[str, pd.DataFrame]:
    kinds = np.array([KINDS[index % len(KINDS)] for index in range(documents)])
    frame = pd.DataFrame(
        {
            "document": np.arange(documents, dtype=np.int32),
            "id": [f"{kind}-{index:04d}" for index, kind in enumerate(kinds)],
            "kind": kinds,
            "tokens": np.int32(length),
            "total_tokens": np.int32(length),
            "cut": False,
            "skipped": "",
        }
    )
    tables = {
        "documents": frame,
        "tokens": token_table(rng, scale, kinds, length),
        "layers": layer_table(rng, scale, documents, layers),
        "channels": channel_table(rng, layers),
        "items": item_table(rng, scale, items),
        "item_texts": item_text_table(items),
        "generations": generation_table(rng, scale, frame),
    }
    tables["token_texts"] = token_text_table(2048)
    # Ten decimals are the same on every processor, which the last bits of exp and log are not.
    return {name: table.round(10) for name, table in tables.items()}


def token_text_table(count: int) -> pd.DataFrame:
    """Made-up texts of token ids: syllables, with a blank before some, and a few odd ones."""
    odd = {5: "\n", 6: "\t", 7: "\\xe2", 8: "<script>alert(1)</script>", 9: "\u202eevil", 10: ""}
    syllables = ("ka", "lo", "mi", "nu", "re", "sta", "ter", "vo")
    ids = range(count)
    texts = [odd.get(n, f"{' ' * (n % 3 == 0)}{syllables[n % 8]}{syllables[n // 8 % 8]}") for n in ids]
    parts = ["e2" if n == 7 else "" for n in ids]
    return pd.DataFrame({"id": np.array(ids, dtype=np.int32), "text": texts, "bytes": parts})


def token_table(rng: np.random.Generator, scale: float, kinds: np.ndarray, length: int) -> pd.DataFrame:
    n = len(kinds) * length
    document = np.repeat(np.arange(len(kinds), dtype=np.int32), length)
    weight = np.array([{"recall": 2.5, "sums": 1.8, "prose": 0.5}.get(kind, 1.0) for kind in kinds])[document]
    confidence = rng.beta(3, 1.2, n).clip(0.02, 0.9999)
    right = rng.random(n) < confidence
    target = rng.integers(2, 2048, n).astype(np.int32)
    top1 = np.where(right, target, (target + 7) % 2048).astype(np.int32)
    kl = scale**2 * weight * rng.lognormal(-2.0, 2.0, n) * (1.05 - confidence)
    flip = rng.random(n) < np.minimum(0.5, 6 * np.sqrt(kl) * (1 - confidence))
    p_reference = np.where(right, confidence, (1 - confidence) * rng.random(n)).clip(1e-9)
    moved = np.log(p_reference) + rng.normal(0, 1, n) * np.sqrt(2 * kl) * (1.1 - p_reference) - kl
    p_variant = np.exp(np.minimum(moved, -1e-6))
    return pd.DataFrame(
        {
            "document": document,
            "position": np.tile(np.arange(1, length + 1, dtype=np.int32), len(kinds)),
            "target": target,
            "bytes": rng.integers(1, 9, n).astype(np.float32),
            "reference_nll": -np.log(p_reference),
            "variant_nll": -np.log(p_variant),
            "reference_top1": top1,
            "variant_top1": np.where(flip, (top1 + 3) % 2048, top1).astype(np.int32),
            "reference_top1_p": confidence,
            "variant_top1_p": (confidence + rng.normal(0, 1, n) * np.sqrt(kl) * 0.3).clip(0.02, 0.9999),
            "reference_entropy": rng.random(n),
            "variant_entropy": rng.random(n),
            "kl": kl,
            "reverse_kl": kl * 1.1,
            "max_abs_diff": np.sqrt(kl) * 4 + 0.01,
            "mean_abs_diff": np.sqrt(kl) + 0.002,
            "total_variation": np.sqrt(kl / 2).clip(0, 1),
        }
    )


def layer_table(rng: np.random.Generator, scale: float, documents: int, layers: int) -> pd.DataFrame:
    rows, depth = [], 0
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        names = [(f"{prefix}.{linear}", "linear", 0.25 + 0.1 * i) for i, linear in enumerate(LINEARS)]
        names += [
            (f"{prefix}.self_attn", "attention", 0.35),
            (f"{prefix}.mlp", "mlp", 0.6),
            (prefix, "block", 0.3),
        ]
        for name, kind, factor in names:
            error = scale * factor * (1 + 0.8 * layer + (2.5 if layer == 2 and "down_proj" in name else 0))
            error += 0.3 * scale * (kind == "block") * (layer >= 2)
            rows.append((name, kind, depth, error))
            depth += 1
    rows += [("model.norm", "norm", depth, scale * 0.9), ("lm_head", "head", depth + 1, scale * 0.8)]
    parts = []
    for name, kind, depth, error in rows:
        signal = rng.uniform(900, 1100, documents)
        wrong = signal * error**2 * rng.lognormal(0, 0.3, documents)
        parts.append(
            pd.DataFrame(
                {
                    "document": np.arange(documents, dtype=np.int32),
                    "module": name,
                    "kind": kind,
                    "depth": np.int32(depth),
                    "sum_squared_error": wrong,
                    "sum_squared_reference": signal,
                    "sum_squared_variant": signal,
                    "dot": signal - wrong / 2,
                    "max_abs_diff": np.sqrt(wrong),
                    "n": np.int64(150 * 192),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def channel_table(rng: np.random.Generator, layers: int) -> pd.DataFrame:
    parts = []
    for layer in range(layers):
        for index, linear in enumerate(LINEARS):
            base = rng.lognormal(0, 0.35, 192)
            base[17] *= 6 if layer == 1 else 2
            base[60] *= 40 if linear.endswith("down_proj") and layer == 2 else 1
            for side, wobble in (("reference", 1.0), ("variant", 1.0 + 0.02 * index)):
                parts.append(
                    pd.DataFrame(
                        {
                            "side": side,
                            "module": f"model.layers.{layer}.{linear}",
                            "layer": np.int32(layer),
                            "channel": np.arange(192, dtype=np.int32),
                            "max_abs": base * wobble,
                            "sum": 0.0,
                            "sum_squares": base,
                            "sum_fourth": base,
                            "over_threshold": (base > 6).astype(np.int64) * 10,
                            "tokens": np.int64(30_000),
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)


def item_table(rng: np.random.Generator, scale: float, items: int) -> pd.DataFrame:
    parts = []
    for index, task in enumerate(TASKS):
        hard = 1 + 2 * (task in {"pocket_recall_far", "pocket_sums4"})
        reference = (rng.random(items) < 0.99 - 0.03 * (index % 3)).astype(float)
        lose, gain = rng.random(items) < 0.16 * scale * hard, rng.random(items) < 0.02
        variant = np.where(reference == 1, 1.0 - lose, 1.0 * gain)
        picks = {
            "reference": [k % 4 if right else (k + 1) % 4 for k, right in enumerate(reference)],
            "variant": [k % 4 if right else (k + 2) % 4 for k, right in enumerate(variant)],
        }
        metric = "exact_match" if "recall" in task or "sums" in task else "accuracy"
        parts.append(
            pd.DataFrame(
                {
                    "task": task,
                    "output_type": "multiple_choice",
                    "doc_id": np.arange(items),
                    "doc_hash": "h",
                    "prompt_hash": "h",
                    "target_hash": "h",
                    "metric": metric,
                    "better": "higher",
                    "target": [str(k) for k in np.arange(items) % 4],
                    "reference_score": reference,
                    "variant_score": variant,
                    "reference_answer": [str(pick) for pick in picks["reference"]],
                    "variant_answer": [str(pick) for pick in picks["variant"]],
                    "reference_loglikelihoods": [likelihoods(pick, k) for k, pick in enumerate(picks["reference"])],
                    "variant_loglikelihoods": [likelihoods(pick, k + 3) for k, pick in enumerate(picks["variant"])],
                    "weight": 1.0,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def likelihoods(pick: int, k: int) -> list[float]:
    """Four choices, of which one leads the others by 0.25 to 2 nats."""
    return [-1.0 if choice == pick else -1.25 - k % 8 / 4 for choice in range(4)]


def item_text_table(items: int) -> pd.DataFrame:
    """The question and the choices of every item."""
    told = "Mira has the lamp and Tom has the key."
    rows = [
        {"task": task, "doc_id": k, "prompt": f"{told}\nWho has number {k}?\nAnswer:", "choices": [*"abcd"]}
        for task in TASKS
        for k in range(items)
    ]
    return pd.DataFrame(rows)


def generation_table(rng: np.random.Generator, scale: float, documents: pd.DataFrame) -> pd.DataFrame:
    """Every text is the same words in the same order up to where it parts."""
    told = "and then the red fox gave the lamp to Mira, who put it under the old stair of the mill near the river"
    words = told.split()
    rows = []
    for row in documents.head(20).to_dict("records"):
        parted = bool(rng.random() < min(0.9, 2 * scale))
        at = int(rng.integers(1, len(words) - 1)) if parted else len(words)
        same, other = " ".join(words[:at]), " ".join(reversed(words[at:]))
        variant = f"{same} {other}".strip()
        rows.append(
            {
                "document": row["document"],
                "id": row["id"],
                "kind": row["kind"],
                "prompt": f"Story of {row['id']}:\n",
                "reference_text": told,
                "variant_text": variant,
                "reference_ended": False,
                "variant_ended": parted and at % 2 == 0,
                "same_tokens": True,
                "diverged": parted,
                "first": at,
                "first_character": len(same) + 1 if parted else len(told),
                "similarity": 1.0 if not parted else at / len(words),
            }
        )
    return pd.DataFrame(rows)
