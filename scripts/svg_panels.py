"""Panels beside each other in one SVG, both axes logarithmic: what growth_plot.py and lm_bench_plot.py draw with."""
import math

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, GAP = 300, 280, 70, 60, 50, 24  # of a panel, and around them
COLOURS = ["#1f5fa8", "#c0392b", "#2a8a4a", "#8e5bb0", "#b8860b", "#444"]
TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'


def text(x, y, words, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {TEXT} {more}>{words}</text>'


def short(size):
    return f"{size // 1024}k" if size >= 10000 else f"{size}"


class Panel:
    """`series` is {name: [(size, value)]}; `label` names the sizes, `title` is above."""

    def __init__(self, label, title, series, unit):
        self.label, self.title, self.unit = label, title, unit
        self.series = {name: sorted(points) for name, points in series.items()}
        values = [value for points in self.series.values() for _, value in points]
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)

    def draw(self, left, low, high):
        """From `left` on; low and high are the powers of ten of the value axis."""
        sizes = sorted({size for points in self.series.values() for size, _ in points})
        first, last = math.log2(sizes[0]), math.log2(sizes[-1])

        def x(size):
            return left + (math.log2(size) - first) / max(last - first, 1) * WIDTH

        def y(value):
            return TOP + HEIGHT - (math.log10(value) - low) / (high - low) * HEIGHT

        yield f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>'
        for power in range(low, high + 1):
            at = y(10**power)
            yield f'<line x1="{left}" x2="{left + WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
        for size in sizes[::1 if len(sizes) <= 9 else 2]:
            yield f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="#eee"/>'
            yield text(x(size), TOP + HEIGHT + 16, short(size))
        yield text(left + WIDTH / 2, TOP + HEIGHT + 40, self.label)
        yield text(left + WIDTH / 2, TOP - 12, self.title)
        for i, (name, points) in enumerate(self.series.items()):
            colour = COLOURS[i % len(COLOURS)]
            line = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)
            yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            for size, value in points:
                tip = f"{name}: {value:.4g} {self.unit}" if name else f"{value:.4g} {self.unit}"
                yield f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"><title>{tip}</title></circle>'
            if name:
                yield text(left + 8, TOP + 18 + 16 * i, name, "start", f'style="fill:{colour}"')


def powers(left, low, high):
    """The value axis of the panel that begins at `left`."""
    for power in range(low, high + 1):
        y = TOP + HEIGHT - (power - low) / (high - low) * HEIGHT
        yield text(left - 6, y + 4, f"{10.0**power:g}", "end")


def plot(heading, panels, axis=None):
    """The whole file. With `axis`, its label, all panels share one value axis; else each has its own."""
    step = WIDTH + (GAP if axis else LEFT)
    width, height = LEFT + len(panels) * step, TOP + HEIGHT + BOTTOM
    low, high = min(p.low for p in panels), max(p.high for p in panels)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'
    if axis:
        yield from powers(LEFT, low, high)
        yield text(18, TOP + HEIGHT / 2, axis, more=f'transform="rotate(-90 18 {TOP + HEIGHT / 2})"')
    for i, panel in enumerate(panels):
        left = LEFT + i * step
        if not axis:
            yield from powers(left, panel.low, panel.high)
        yield from panel.draw(left, *((low, high) if axis else (panel.low, panel.high)))
    yield text(LEFT, 18, heading, "start", 'font-weight="bold"')
    yield "</svg>"


def write(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
