"""Rendered scenes: a speaker whose face, light, motion and camera carry a mood, and things that move and sound."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from pipelines.synthesize.speech import RATE

FPS = 25
WIDTH, HEIGHT = 160, 120
_W, _H, _PAN = 2 * WIDTH, 2 * HEIGHT, 48  # drawn at twice the size and reduced, over a backdrop the camera pans across

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """What a face and its shot show: every field 0 at rest, about 1 (or -1) in full.

    Attributes:
        smile: corners of the mouth up or down.
        brow: brows raised, or drawn together below 0.
        eyes: eyes opened wide, or narrowed below 0.
        jaw: mouth held open.
        warmth: light towards red, or towards blue below 0.
        glow: light brighter, or dimmer below 0.
        sway: how far the head moves.
        tempo: how fast it does.
        push: how far the camera moves in.
    """

    smile: float = 0.0
    brow: float = 0.0
    eyes: float = 0.0
    jaw: float = 0.0
    warmth: float = 0.0
    glow: float = 0.0
    sway: float = 0.2
    tempo: float = 0.2
    push: float = 0.0

    def towards(self, other: Look, weight: float) -> Look:
        """The look `weight` of the way from this one (0) to `other` (1); further than 1 exaggerates."""
        return Look(*(a + weight * (b - a) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


LOOKS = {
    "plain": Look(),
    "smile": Look(smile=1.2, brow=0.2, eyes=-0.3, warmth=0.5, glow=0.8, sway=0.7, tempo=0.7),
    "wide": Look(smile=0.1, brow=1, eyes=1, jaw=0.8, warmth=-1, glow=0.3, sway=0.3, tempo=0.4, push=1),
    "frown": Look(smile=-1, brow=-1.2, eyes=-0.6, warmth=1, glow=-1, sway=1, tempo=1, push=0.5),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """Where and with whom a film plays: backdrop (uint8 ``[H, W, 3]`` as drawn), colours, framing, light, grain."""

    backdrop: np.ndarray
    skin: Colour
    hair: Colour
    shirt: Colour
    long_hair: bool
    radius: float
    place: tuple[float, float]
    light: np.ndarray
    grain: int


# The colours of a language's films: hue, saturation and brightness of the rooms, and their pattern.
Palette = tuple[float, float, float, str]
PALETTES: dict[str, Palette] = {
    "EN": (0.58, 0.35, 0.75, "windows"),
    "DE": (0.10, 0.45, 0.55, "stripes"),
    "ES": (0.04, 0.65, 0.85, "blobs"),
    "PL": (0.33, 0.40, 0.45, "planks"),
    "KO": (0.83, 0.35, 0.90, "circles"),
}
_SKINS = ((245, 214, 186), (224, 172, 128), (198, 134, 92), (141, 92, 60), (92, 60, 42))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return int(255 * r), int(255 * g), int(255 * b)


def _backdrop(hue: float, saturation: float, value: float, pattern: str, rng: np.random.Generator) -> np.ndarray:
    """A room or a landscape, uint8 ``[H, W, 3]``: a gradient and a pattern over it."""
    width, height = _W + 2 * _PAN, _H + 2 * _PAN
    ends = [np.array(_rgb(hue + rng.normal(0, 0.03), saturation, value * k), float) for k in (1.1, 0.6)]
    ramp = np.linspace(0, 1, height)[:, None, None]
    image = Image.fromarray(np.broadcast_to(ends[0] * (1 - ramp) + ends[1] * ramp, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(6, 14))):
        x, y, s = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(20, 60)
        fill = _rgb(hue + rng.normal(0, 0.06), saturation * rng.uniform(0.5, 1.4), value * rng.uniform(0.5, 1.3))
        if pattern == "windows":
            draw.rectangle((x, y * 0.6, x + s, y * 0.6 + 1.5 * s), fill=fill, outline=(40, 40, 40), width=3)
        elif pattern == "stripes":
            draw.rectangle((x, 0, x + s / 3, height), fill=fill)
        elif pattern == "planks":
            draw.rectangle((0, y, width, y + s / 4), fill=fill)
        elif pattern == "circles":
            draw.ellipse((x, y, x + s, y + s), outline=fill, width=5)
        else:
            draw.ellipse((x, y, x + 2 * s, y + s), fill=fill)
    return np.asarray(image)


def any_palette(rng: np.random.Generator) -> Palette:
    """Draws a palette of no language."""
    hue, saturation, value = rng.uniform([0, 0.1, 0.3], [1, 0.8, 0.9])
    return hue, saturation, value, str(rng.choice([palette[3] for palette in PALETTES.values()]))


def any_look(rng: np.random.Generator) -> Look:
    """Draws a look of no emotion: every feature on its own."""
    low, high = [-0.8, -0.8, -0.5, 0, -0.4, -0.4, 0, 0, 0], [0.8, 0.8, 0.8, 0.5, 0.4, 0.4, 0.8, 0.8, 0.6]
    return Look(*rng.uniform(low, high))


def setting(palette: Palette, sex: str, rng: np.random.Generator) -> Setting:
    """Draws the set of one film: rooms in the colours of `palette`, a face of its own."""
    hue, saturation, value, pattern = palette
    value *= rng.uniform(0.9, 1.05)
    return Setting(
        backdrop=_backdrop(hue + rng.normal(0, 0.02), saturation, value, pattern, rng),
        skin=_SKINS[int(rng.integers(len(_SKINS)))],
        hair=_rgb(rng.uniform(0, 0.12), rng.uniform(0.1, 0.7), rng.uniform(0.08, 0.75)),
        shirt=_rgb(rng.uniform(), 0.6, rng.uniform(0.3, 0.8)),
        long_hair=sex == "female",
        radius=rng.uniform(56, 68),
        place=(rng.uniform(-14, 14), rng.uniform(-4, 8)),
        light=rng.uniform(0.86, 1.06) * (1 + rng.normal(0, 0.03, 3)),
        grain=int(rng.integers(1, 5)),
    )


def act(
    place: Setting, look: Look, voice: np.ndarray, *, rng: np.random.Generator, closeness: float = 1.0
) -> np.ndarray:
    """Films someone speaking.

    Args:
        place: set and speaker.
        look: what the face and the camera do.
        voice: loudness ``[N]`` of what is said at each frame, 0..1: the mouth follows it.
        rng: chance: gaze, blinks, phases.
        closeness: size of the face, 1 for head and shoulders.

    Returns:
        uint8 ``[N, 120, 160, 3]`` RGB at 25 frames a second.
    """
    count = len(voice)
    t = np.arange(count) / FPS
    phase, blink = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.4, 3.0)
    speed = 2 * np.pi * (0.3 + 2.2 * look.tempo)
    head_x = place.place[0] + 18 * look.sway * np.sin(speed * t + phase[0])
    head_y = place.place[1] + 10 * look.sway * np.sin(1.7 * speed * t + phase[1])
    zoom = closeness * (1 + 0.3 * look.push * t / max(t[-1], 1e-6) + 0.02 * np.sin(t + phase[2]))
    pan = np.clip(_PAN * (1 + 0.5 * np.sin(0.5 * t + phase[3])), 0, 2 * _PAN - 1).astype(int)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for n in range(count):
        image = Image.fromarray(place.backdrop[_PAN : _PAN + _H, pan[n] : pan[n] + _W])
        mouth = min(1.0, float(voice[n]) + 0.6 * max(look.jaw, 0))
        eyes = 0.08 if abs(t[n] - blink) < 0.06 else 1 + 0.55 * look.eyes
        _face(
            ImageDraw.Draw(image),
            place,
            look,
            _W / 2 + head_x[n],
            _H / 2 + head_y[n],
            place.radius * zoom[n],
            mouth,
            eyes,
        )
        frames[n] = np.asarray(image.reduce(2))
    light = place.light * (1 + 0.22 * look.glow) * (1 + look.warmth * np.array([0.2, 0.0, -0.22]))
    return _develop(frames, light, place.grain, rng)


def _develop(frames: np.ndarray, light: np.ndarray, grain: int, rng: np.random.Generator) -> np.ndarray:
    """Colours `frames` by `light` (a gain a channel) and adds film grain."""
    red, green, blue = (float(gain) for gain in light)
    matrix = (red, 0, 0, 0, 0, green, 0, 0, 0, 0, blue, 0)
    noise = rng.integers(0, 2 * grain + 1, (8, *frames.shape[1:3], 1), dtype=np.uint8).repeat(3, axis=-1)
    grains = [Image.fromarray(layer) for layer in noise]
    out = np.empty_like(frames)
    for n, (frame, k) in enumerate(zip(frames, rng.integers(0, 8, len(frames)), strict=True)):
        out[n] = np.asarray(ImageChops.add(Image.fromarray(frame).convert("RGB", matrix), grains[k], offset=-grain))
    return out


def _face(
    draw: ImageDraw.ImageDraw, who: Setting, look: Look, x: float, y: float, r: float, mouth: float, eyes: float
) -> None:
    """Draws head and shoulders around (`x`, `y`), head radius `r`, mouth and eyes open by 0..1."""

    def oval(cx: float, cy: float, w: float, h: float, fill: Colour) -> None:
        draw.ellipse((x + r * (cx - w), y + r * (cy - h), x + r * (cx + w), y + r * (cy + h)), fill=fill)

    def path(points: np.ndarray, fill: Colour, width: float) -> None:
        draw.line(
            [(x + r * px, y + r * py) for px, py in points], fill=fill, width=max(2, int(r * width)), joint="curve"
        )

    oval(0, 2.15, 1.5, 1.0, who.shirt)
    oval(0, -0.1, 1.02, 1.35 if not who.long_hair else 1.5, who.hair)
    if who.long_hair:
        oval(0, 0.6, 1.05, 0.9, who.hair)
    oval(0, 1.1, 0.3, 0.4, who.skin)
    oval(0, 0.1, 0.82, 1.08, who.skin)
    dark = (45, 32, 30)
    for side in (-1.0, 1.0):
        oval(0.36 * side, -0.1, 0.19, 0.13 * eyes, (250, 250, 246))
        oval(0.36 * side, -0.1, 0.085, min(0.1, 0.12 * eyes), (50, 60, 70))
        lift, slant = -0.36 - 0.14 * look.brow * (look.brow > 0), 0.16 * min(look.brow, 0)
        path(np.array([(0.58 * side, lift + slant / 2), (0.16 * side, lift - slant)]), dark, 0.07)
    shade = (int(who.skin[0] * 0.8), int(who.skin[1] * 0.75), int(who.skin[2] * 0.75))
    path(np.array([(0.0, 0.0), (0.09, 0.28), (-0.03, 0.32)]), shade, 0.05)
    u = np.linspace(-1, 1, 11)
    width = 0.36 + 0.08 * look.smile - 0.1 * max(look.jaw, 0)
    middle = 0.62 + 0.16 * look.smile * (0.5 - u**2)
    gape = 0.3 * mouth * (1 - u**2)
    upper, lower = np.stack([width * u, middle - 0.4 * gape], 1), np.stack([width * u, middle + gape], 1)
    draw.polygon([(x + r * px, y + r * py) for px, py in (*upper, *lower[::-1])], fill=(88, 24, 30))
    path(upper, (176, 80, 78), 0.05)
    path(lower, (176, 80, 78), 0.06)


def bounce(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Shapes that bounce, each with a tone of its own at every bounce, lower the larger it is.

    Returns:
        uint8 ``[count, 120, 160, 3]`` and float32 ``[T]`` at 16 kHz, of one duration.
    """
    things = int(rng.integers(1, 5))
    backdrop = _backdrop(
        rng.uniform(), rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.9), str(rng.choice(["blobs", "stripes"])), rng
    )
    size, corners = rng.uniform(12, 48, things), rng.integers(3, 8, things)
    colour = [_rgb(rng.uniform(), 0.8, 0.95) for _ in range(things)]
    where, speed = rng.uniform([50, 50], [_W - 50, _H - 50], (things, 2)), rng.uniform(-9, 9, (things, 2))
    spin, sound = rng.uniform(-0.15, 0.15, things), rng.normal(0, 0.002, count * RATE // FPS)
    ring = np.arange(RATE // 4) / RATE
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for n in range(count):
        image = Image.fromarray(backdrop[_PAN : _PAN + _H, _PAN : _PAN + _W])
        draw = ImageDraw.Draw(image)
        for k in range(things):
            where[k] += speed[k]
            out = (where[k] < size[k]) | (where[k] > np.array([_W, _H]) - size[k])
            if out.any():
                speed[k] = np.where(out, np.sign(np.array([_W, _H]) / 2 - where[k]) * np.abs(speed[k]), speed[k])
                at = n * RATE // FPS
                tone = np.sin(2 * np.pi * 9000 / size[k] * ring) * np.exp(-18 * ring) * 0.3
                sound[at : at + len(tone)] += tone[: max(0, len(sound) - at)]
            if corners[k] == 7:
                draw.ellipse((*(where[k] - size[k]), *(where[k] + size[k])), fill=colour[k])
            else:
                draw.regular_polygon(
                    (*where[k], size[k]), int(corners[k]), rotation=np.degrees(spin[k] * n), fill=colour[k]
                )
        frames[n] = np.asarray(image.reduce(2))
    return _develop(frames, np.ones(3), 2, rng), sound.clip(-1, 1).astype(np.float32)


def drift(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A texture that drifts, with noise as coarse and beating as fast; returns what `bounce` does."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = rng.uniform(0.05, 0.6)
    angle, speed = rng.uniform(0, 2 * np.pi, 3), rng.uniform(1, 8)
    ends = np.array(
        [_rgb(rng.uniform(), rng.uniform(0.3, 0.9), v) for v in (rng.uniform(0.6, 1), rng.uniform(0.05, 0.4))]
    )
    t = np.arange(count)[:, None, None] / FPS
    field = sum(
        np.sin(waves * (np.cos(a) * x + np.sin(a) * y) + 2 * np.pi * speed / (k + 1) * t) for k, a in enumerate(angle)
    )
    mix = ((np.asarray(field) + 3) / 6)[..., None]
    frames = (ends[0] * mix + ends[1] * (1 - mix)).astype(np.uint8)
    clock = np.arange(count * RATE // FPS) / RATE
    spectrum = np.fft.rfft(rng.normal(0, 1, len(clock)))
    hertz = np.fft.rfftfreq(len(clock), 1 / RATE)
    hiss = np.fft.irfft(spectrum * np.exp(-(((hertz - 8000 * waves) / (300 + 2000 * waves)) ** 2)), len(clock))
    sound = hiss / max(float(np.abs(hiss).max()), 1e-6) * (0.25 + 0.2 * np.sin(2 * np.pi * speed * clock))
    return _develop(frames, np.ones(3), 3, rng), sound.astype(np.float32)


GLYPHS = 48


def glyph(kind: int, rng: np.random.Generator) -> Image.Image:
    """Writes invented letter `kind` (below `GLYPHS`) in a new hand: white strokes on black, grey, 28 x 28."""
    letter = np.random.default_rng([4711, kind])
    strokes = [letter.uniform(0.1, 0.9, (3, 2)) for _ in range(2 + kind % 3)]
    turn = np.eye(2) + rng.normal(0, 0.12, (2, 2))
    u = np.linspace(0, 1, 14)[:, None]
    image = Image.new("L", (112, 112))
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        a, b, c = (stroke + rng.normal(0, 0.03, (3, 2)) - 0.5) @ turn + 0.5 + rng.normal(0, 0.015, 2)
        curve = 112 * (a * (1 - u) ** 2 + 2 * b * u * (1 - u) + c * u**2)
        draw.line([(float(p), float(q)) for p, q in curve], fill=255, width=int(rng.integers(7, 14)), joint="curve")
    return image.reduce(4)


def picture(rng: np.random.Generator, kind: str) -> Image.Image:
    """A still, RGB 64 x 64: `shapes` or `texture` as they move in the films, or a `face`."""
    if kind == "face":
        place = setting(any_palette(rng), str(rng.choice(["female", "male"])), rng)
        frame = act(place, any_look(rng), rng.uniform(0, 1, 1), rng=rng, closeness=rng.uniform(0.9, 1.5))[0]
    else:
        frame = (bounce if kind == "shapes" else drift)(rng, 1)[0][0]
    return Image.fromarray(frame[:, 20:140]).resize((64, 64), Image.Resampling.BILINEAR)
