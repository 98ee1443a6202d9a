#!/usr/bin/env python3
"""Turns the metrics of mamba-rl into a table and a plot of success against horizon.

Usage: scripts/rl_report.py FOLDER   (a run's --out, of any mode)
Writes FOLDER/report.md and FOLDER/success.svg. Needs nothing but Python.
"""
import collections
import json
import math
import pathlib
import statistics
import sys

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 340, 60, 50, 40
COLOURS = {"mamba": "#1f6fb2", "mamba2": "#2e8b57", "gru": "#c0392b"}
ENOUGH = 0.95  # "learned" in the table


def read(path, needed):
    """The lines of a file that have what is needed, of none if there is no such file. A line that a kill has torn is
    left out, and that is said."""
    lines, skipped = [], []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and all(key in line for key in needed):
            lines.append(line)
        else:
            skipped.append(str(number))
    if skipped:
        print(f"{path}: {len(skipped)} lines that cannot be read are left out: {', '.join(skipped[:10])}"
              + (", ..." if len(skipped) > 10 else ""), file=sys.stderr)
    return lines


def runs(folder):
    """{(num_envs, horizon, agent): {seed: {update: line}}}; a run that was resumed says a line once."""
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    for line in read(folder / "metrics.jsonl", ("controller", "num_envs", "horizon", "seed", "update", "seconds",
                                                "rollout_steps_per_s")):
        agent = line["controller"]
        agent += ", published block" if line.get("published_block") else ""
        agent += "" if line.get("curriculum", True) else ", fixed horizon"
        found[line["num_envs"], line["horizon"], agent][line["seed"]][line["update"]] = line
    return found


def last_success(updates):
    evaluated = [line for _, line in sorted(updates.items()) if "eval_success" in line]
    return evaluated[-1]["eval_success"] if evaluated else None


def learned_after(updates):
    """The first evaluation from which on all are good enough; None if there is none."""
    first = None
    for update, line in sorted(updates.items()):
        if "eval_success" in line:
            first = (first or update) if line["eval_success"] >= ENOUGH else None
    return first


def numbers(values, form):
    return ", ".join("-" if value is None else form.format(value) for value in values)


def table(found):
    yield "| environments | horizon | controller | seeds | success, greedy | learned after | updates | seconds "\
          "| rollout steps/s |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for (num_envs, horizon, controller), seeds in sorted(found.items()):
        order = [updates for _, updates in sorted(seeds.items())]
        ends = [updates[max(updates)] for updates in order]
        speed = statistics.median(line["rollout_steps_per_s"] for updates in order for line in updates.values())
        yield (f"| {num_envs} | {horizon:,} | {controller} | {numbers(sorted(seeds), '{}')} "
               f"| {numbers([last_success(u) for u in order], '{:.1%}')} "
               f"| {numbers([learned_after(u) for u in order], '{}')} "
               f"| {numbers([line['update'] for line in ends], '{}')} "
               f"| {numbers([line['seconds'] for line in ends], '{:.0f}')} | {speed:,.0f} |")


def elsewhere(folder):
    """Agents at delays that they were not trained for: the last evaluation of each counts."""
    found = {}
    for path in sorted([folder / "evaluations.jsonl", *folder.glob("*/evaluations.jsonl")]):
        for line in read(path, ("horizon", "evaluated_at", "controller", "seed", "eval_success", "eval_sampled")):
            key = line["horizon"], line["evaluated_at"], line["controller"]
            found.setdefault(key, {})[line["seed"]] = line
    if not found:
        return
    yield ""
    yield "| trained at | evaluated at | controller | seeds | success, greedy | sampled |"
    yield "|---|---|---|---|---|---|"
    for (horizon, at, controller), seeds in sorted(found.items()):
        lines = [line for _, line in sorted(seeds.items())]
        yield (f"| {horizon:,} | {at:,} | {controller} | {numbers(sorted(seeds), '{}')} "
               f"| {numbers([line['eval_success'] for line in lines], '{:.1%}')} "
               f"| {numbers([line['eval_sampled'] for line in lines], '{:.1%}')} |")


def plot(found):
    points = collections.defaultdict(list)  # (agent, num_envs): (horizon, successes)
    for (num_envs, horizon, agent), seeds in sorted(found.items()):
        successes = [s for s in map(last_success, seeds.values()) if s is not None]
        if successes:
            points[agent, num_envs].append((horizon, successes))
    most_envs = max((num_envs for _, num_envs in points), default=0)
    horizons = sorted({horizon for line in points.values() for horizon, _ in line})
    if not horizons:
        sys.exit("no evaluation yet: nothing to plot")
    low, high = math.log10(horizons[0]), math.log10(horizons[-1])

    def x(horizon):
        share = (math.log10(horizon) - low) / (high - low) if high > low else 0.5
        return LEFT + 20 + share * (WIDTH - LEFT - 60)

    def y(success):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - success)

    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    for percent in range(0, 101, 20):
        yield f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y(percent / 100):.1f}" y2="{y(percent / 100):.1f}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 8}" y="{y(percent / 100) + 4:.1f}" text-anchor="end">{percent} %</text>'
    for horizon in horizons:
        yield f'<text x="{x(horizon):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{horizon:,}</text>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">steps between cue and query</text>'
    yield f'<text x="{LEFT}" y="{TOP - 20}">right answers, greedy: seeds (dots), their median (line)</text>'
    for place, ((agent, num_envs), line) in enumerate(sorted(points.items())):
        colour = COLOURS.get(agent.split(",")[0], "#222")
        dashes = "" if num_envs == most_envs else ' stroke-dasharray="4 3"'
        # Side by side: controllers that do equally well would hide each other.
        aside = 4 * (2 * place - (len(points) - 1))
        medians = " ".join(f"{x(h) + aside:.1f},{y(statistics.median(s)):.1f}" for h, s in line)
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="1.5"{dashes} points="{medians}"/>'
        for horizon, successes in line:
            for success in successes:
                yield f'<circle cx="{x(horizon) + aside:.1f}" cy="{y(success):.1f}" r="3.5" fill="{colour}"/>'
        yield f'<text x="{WIDTH - 20}" y="{HEIGHT - BOTTOM - 10 - 16 * place}" text-anchor="end" fill="{colour}">{agent}, {num_envs} environments</text>'
    yield "</svg>"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    found = runs(folder)
    if not found:
        sys.exit(f"{folder}/metrics.jsonl: no runs in it")
    report = "\n".join([*table(found), *elsewhere(folder)]) + "\n"
    (folder / "report.md").write_text(report, encoding="utf-8")
    (folder / "success.svg").write_text("\n".join(plot(found)) + "\n", encoding="utf-8")
    print(report, end="")


if __name__ == "__main__":
    main()
