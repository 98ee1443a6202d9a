#!/usr/bin/env python3
"""Draws the bits per byte of train-lm's metrics.jsonl as an SVG: scripts/plot_metrics.py RUN/metrics.jsonl > loss.svg

Points are means over a fiftieth of the run; validation is drawn as dots. Needs nothing but Python.
"""
import json
import math
import sys

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 360, 50, 40, 20


def points(line):
    """{name: (step, value)} of what a line says; None where it cannot be read: a kill tears the last one."""
    try:
        found = dict(json.loads(line))
        values = {name: (found["step"], found[name]) for name in ("bits_per_byte", "valid_bits_per_byte")
                  if name in found}
        return values if all(math.isfinite(number) for pair in values.values() for number in pair) else None
    except (ValueError, TypeError, KeyError):
        return None


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        lines = [points(line) for line in open(sys.argv[1], encoding="utf-8", errors="replace")]
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    skipped = [str(number) for number, line in enumerate(lines, 1) if line is None]
    if skipped:
        print(f"{sys.argv[1]}: {len(skipped)} lines that cannot be read are left out: {', '.join(skipped[:10])}"
              + (", ..." if len(skipped) > 10 else ""), file=sys.stderr)
    # A step that was said twice, before and after a resume, counts as it was said last.
    train = sorted(dict(line["bits_per_byte"] for line in lines if line and "bits_per_byte" in line).items())
    valid = sorted(dict(line["valid_bits_per_byte"] for line in lines if line and "valid_bits_per_byte" in line).items())
    if not train:
        sys.exit(f"{sys.argv[1]}: no steps in it")
    size = max(1, len(train) // 50)
    groups = [train[i:i + size] for i in range(0, len(train), size)]
    curve = [(sum(s for s, _ in g) / len(g), sum(b for _, b in g) / len(g)) for g in groups]
    last_step = max(step for step, _ in train)
    highest = max(1, int(max(bits for _, bits in curve)) + 1)

    def at(step, bits):
        x = LEFT + (WIDTH - LEFT - 20) * step / last_step
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * bits / highest
        return f"{x:.1f},{y:.1f}"

    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">')
    print(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for bits in range(highest + 1):
        x0, y0 = at(0, bits).split(",")
        x1, _ = at(last_step, bits).split(",")
        print(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}" stroke="#ddd"/>')
        print(f'<text x="{LEFT - 8}" y="{float(y0) + 4:.1f}" text-anchor="end">{bits}</text>')
    for part in range(6):
        step = last_step * part // 5
        x, y = at(step, 0).split(",")
        print(f'<text x="{x}" y="{float(y) + 18:.1f}" text-anchor="middle">{step}</text>')
    print(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">steps</text>')
    print(f'<text x="{LEFT}" y="{TOP - 6}">bits per byte: training (line), validation (dots)</text>')
    print(f'<polyline fill="none" stroke="#1f6fb2" stroke-width="1.5" points="{" ".join(at(*p) for p in curve)}"/>')
    for point in valid:
        x, y = at(*point).split(",")
        print(f'<circle cx="{x}" cy="{y}" r="3.5" fill="#c0392b"/>')
    print("</svg>")


if __name__ == "__main__":
    main()
