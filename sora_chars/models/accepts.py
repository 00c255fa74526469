"""What a provider accepts, as data: its checks, its messages and its row in the list of providers come from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from .sources import Source, is_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .requests import CharacterRequest, Clip

_MIB = 1024 * 1024
_FIELDS = ("name", "prompt", "safety", "voice")
_NO_FIELD = {True: "this route has no such field", False: "this provider has no such field"}

Local = Literal["no", "upload", "inline", "hosting"]
"""What happens to a local file: refused, uploaded to the provider, sent inside the request, or hosted by the caller."""

_LOCAL_NOTES: Mapping[Local, str] = {
    "no": "URLs only",
    "upload": "URLs or local files",
    "inline": "URLs or local files, which are sent inside the request",
    "hosting": "URLs, or local files by hosting=",
}
_NO_UPLOADS = {"no", "hosting"}


@attrs.frozen(kw_only=True)
class MediaRule:
    """The limits of the videos or images that a provider takes.

    Attributes:
        count: The lowest and the highest number of them.
        local: What happens to local files.
        formats: The file formats, such as "mp4".
        max_bytes: Largest file.
        seconds: Shortest and longest video.
        min_pixels: Shortest side of an image or of a video's picture.
        max_pixels: Longest side of an image.
        ratio: Lowest and highest ratio of width to height.
        sizes: The widths and heights that a video may have, if it must have one of them.
        pixels: Lowest and highest number of pixels of a video's picture.
        frame_rates: Lowest and highest number of frames a second.
        note: What the provider demands beyond that.
    """

    count: tuple[int, int] = (1, 1)
    local: Local = "no"
    formats: tuple[str, ...] = ()
    max_bytes: int | None = None
    seconds: tuple[float, float] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    ratio: tuple[float, float] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    pixels: tuple[int, int] | None = None
    frame_rates: tuple[float, float] | None = None
    note: str = ""

    def describe(self) -> str:
        """Return the limits as one line, such as "1; URLs only; mp4, mov; 3 to 8 s; up to 200 MB"."""
        low, high = self.count
        parts = [f"{low}" if low == high else f"{low} to {high}", _LOCAL_NOTES[self.local], ", ".join(self.formats)]
        if self.seconds:
            parts.append(_span(self.seconds, "s"))
        if self.max_bytes:
            parts.append(f"up to {self.max_bytes // _MIB} MB")
        if self.min_pixels and self.max_pixels:
            parts.append(f"{self.min_pixels} to {self.max_pixels} pixels a side")
        elif self.min_pixels:
            parts.append(f"at least {self.min_pixels} pixels a side")
        if self.ratio:
            parts.append(f"width to height {_span(self.ratio, '')}")
        parts.append(" or ".join(f"{width}x{height}" for width, height in self.sizes))
        if self.pixels:
            parts.append("{} to {} pixels a frame".format(*self.pixels))
        if self.frame_rates:
            parts.append(_span(self.frame_rates, "frames a second"))
        return "; ".join(filter(None, [*parts, self.note]))


@attrs.frozen(kw_only=True)
class TextRule:
    """The limit of a text field, in characters, and whether the field is required. None: no limit is documented."""

    max_length: int | None = None
    required: bool = False

    def describe(self) -> str:
        """Return the limit as one line."""
        limit = f", {self.span('up to ')}" if self.max_length else ""
        return ("required" if self.required else "optional") + limit

    def span(self, start: str) -> str:
        """Return the limit behind the words that begin it."""
        return f"{start}{self.max_length} characters" if self.max_length else "at least 1 character"


@attrs.frozen(kw_only=True)
class ClipRule:
    """The clip that a provider cuts from a video: its shortest and longest span, and the sources that need one."""

    seconds: tuple[float, float]
    sources: tuple[str, ...]

    def describe(self) -> str:
        """Return the limit as one line."""
        return f"required with {' or '.join(self.sources)}, {_span(self.seconds, 's')}"


TextRules: TypeAlias = TextRule | Mapping[str, TextRule]
"""A rule for every source, or one for each source that takes the field."""


@attrs.frozen(kw_only=True)
class Accepts:
    """What a provider accepts in a `CharacterRequest`. A source or a field without a rule is refused.

    Attributes:
        from_task: Whether `from_task` is accepted: a finished task of the account.
        video: The rule for `video`.
        images: The rule for `images`.
        clip: The rule for `clip`.
        name: The rule for `name`.
        prompt: The rule for `prompt`.
        safety: The rule for `safety`.
        voice: The sources with which a `voice` may be given.
    """

    from_task: bool = False
    video: MediaRule | None = None
    images: MediaRule | None = None
    clip: ClipRule | None = None
    name: TextRules | None = None
    prompt: TextRules | None = None
    safety: TextRules | None = None
    voice: tuple[str, ...] = ()

    def problems(self, request: CharacterRequest) -> list[str]:
        """Return why a request cannot be accepted, apart from the contents of its files."""
        return [*self._source_problems(request), *self._field_problems(request)]

    def takes_clip(self, source: str) -> bool:
        """Return whether the provider itself cuts the clip of a source."""
        return self.clip is not None and source in self.clip.sources

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the limits of each source and field that is accepted."""
        if self.from_task:
            yield "from_task", "a finished task of the account"
        for name in ("video", "images", "clip", "name", "prompt", "safety"):
            if rule := getattr(self, name):
                yield name, _described(rule)
        if self.voice:
            yield "voice", f"optional, with {' or '.join(self.voice)}"

    def _source_problems(self, request: CharacterRequest) -> Iterator[str]:
        taken = " or ".join(name for name in ("from_task", "video", "images") if getattr(self, name))
        if request.from_task is not None and not self.from_task:
            yield f"from_task must be omitted, since this provider takes {taken}"
        if request.video is not None and self.video is None:
            yield f"video must be omitted, since this provider takes {taken}"
        elif request.video_path is not None and self.video is not None and self.video.local == "no":
            yield "video must be a URL, since this provider takes no uploads"
        elif request.video_path is not None and self.video is not None and self.video.local == "hosting":
            yield "video must be a URL, since this provider takes no uploads; host the file, or pass hosting="
        if request.images is not None:
            yield from self._image_problems(request.images, taken)

    def _image_problems(self, images: tuple[Source, ...], taken: str) -> Iterator[str]:
        if self.images is None:
            yield f"images must be omitted, since this provider takes {taken}"
            return
        low, high = self.images.count
        if not low <= len(images) <= high:
            yield f"images must hold {low} to {high} images, got {len(images)}"
        for number, image in enumerate(images):
            if self.images.local in _NO_UPLOADS and not is_url(image):
                advice = "; host the file, or pass hosting=" if self.images.local == "hosting" else ""
                yield f"images[{number}] must be a URL, since this provider takes no uploads{advice}"

    def _field_problems(self, request: CharacterRequest) -> Iterator[str]:
        source = next(name for name in ("from_task", "video", "images") if getattr(request, name) is not None)
        if self.clip and self.takes_clip(source):
            yield from _clip_problems(request.clip, self.clip, source)
        elif request.clip is not None and (self.clip is None or getattr(self, source)):
            yield self._refusal("clip", source)
        for field in _FIELDS:
            value = getattr(request, field)
            if field == "voice" and source in self.voice:
                continue
            rules = getattr(self, field, None)
            rule = rules.get(source) if isinstance(rules, Mapping) else rules
            if isinstance(rule, TextRule):
                yield from _text_problems(field, value, rule)
            elif value is not None:
                yield self._refusal(field, source)

    def _refusal(self, field: str, source: str) -> str:
        if field == "voice" and self.voice:
            return f"voice must be omitted with {source}, since it is only for {' or '.join(self.voice)}"
        if field == "clip" and source == "video" and self.video and self.video.seconds:
            return (
                "clip must be omitted, since this provider takes a whole video of "
                f"{_span(self.video.seconds, 'seconds')}; cut the video{', or use from_task' if self.from_task else ''}"
            )
        has_field = bool(getattr(self, field, None))
        return f"{field} must be omitted{f' with {source}' if has_field else ''}, since {_NO_FIELD[has_field]}"


def _described(rule: MediaRule | ClipRule | TextRules) -> str:
    if not isinstance(rule, Mapping):
        return rule.describe()
    sources: dict[str, list[str]] = {}
    for source, one in rule.items():
        sources.setdefault(one.describe(), []).append(source)
    return "; ".join(f"with {' or '.join(names)}: {text}" for text, names in sources.items())


def _clip_problems(clip: Clip | None, rule: ClipRule, source: str) -> Iterator[str]:
    low, high = rule.seconds
    if clip is None:
        yield f'clip must be given with {source}, as "start,end" in seconds'
    elif not low <= clip.seconds <= high:
        yield f'clip must span {_span(rule.seconds, "seconds")}, got {clip.seconds} ("{clip}")'


def _text_problems(field: str, value: str | None, rule: TextRule) -> Iterator[str]:
    if value is None:
        if rule.required:
            yield f"{field} must be given, with {rule.span('1 to ')}"
    elif not value.strip() or len(value) > (rule.max_length or len(value)):
        yield f"{field} must have {rule.span('1 to ')}, got {len(value)}"


def _span(bounds: tuple[float, float], unit: str) -> str:
    low, high = bounds
    if high == math.inf:
        return f"at least {low:g} {unit}"
    return f"{low:g} to {high:g} {unit}".rstrip()
