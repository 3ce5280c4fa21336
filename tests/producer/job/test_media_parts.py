"""Parts with pictures and sounds: every form becomes the normal one, and content leaves it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import GenerationJob, JobRejected, ProducerSettings
from batchmill.producer.job.media_files import media_part
from batchmill.producer.job.media_format import format_of
from batchmill.producer.job.prefix import prefix_digest
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol.media import media_id
from batchmill.producer.store.submission import fingerprint, prepare

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 40
FLAC = b"fLaC" + b"s" * 40
PNG_TEXT, FLAC_TEXT = (base64.b64encode(content).decode() for content in (PNG, FLAC))
DATA_URL = f"data:image/png;base64,{PNG_TEXT}"
URL = "https://pictures.example/a.png"


def job_with(*parts: Any, **fields: Any) -> GenerationJob:
    return parse_job({"messages": [{"role": "user", "content": list(parts)}], **fields})


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"type": "image_url", "image_url": {"url": DATA_URL}}, id="image_url"),
        pytest.param(
            {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "auto"}}, id="detail"
        ),
        pytest.param({"type": "image_url", "image_url": DATA_URL}, id="image_url-text"),
        pytest.param({"type": "input_image", "image_url": DATA_URL}, id="input_image"),
        pytest.param({"type": "image", "image": DATA_URL}, id="hf-image"),
        pytest.param({"type": "image", "url": DATA_URL}, id="hf-url"),
        pytest.param({"type": "image", "base64": PNG_TEXT}, id="hf-base64"),
        pytest.param({"type": "image", "url": f"DATA:;Base64,{PNG_TEXT}"}, id="upper-case"),
        pytest.param(
            {"type": "image", "url": f"data:text/html;base64,{PNG_TEXT}"}, id="wrong-type"
        ),
        pytest.param({"type": "image", "image": PNG}, id="bytes"),
        pytest.param({"type": "image", "media": media_id(PNG)}, id="stored"),
    ],
)
def test_every_form_of_a_picture_becomes_the_same_document(part: dict[str, Any]) -> None:
    job = job_with(part, {"type": "text", "text": "What is it?"})
    (found,) = job.media
    assert found.model_dump() == {"type": "image", "media": media_id(PNG)}
    assert PNG_TEXT not in job.model_dump_json()
    assert fingerprint(job) == fingerprint(job_with(found, {"type": "text", "text": "What is it?"}))
    again = parse_document(job.model_dump_json())
    assert again.media[0].model_dump() == found.model_dump()
    assert again.media[0].content is None


def test_a_sound_becomes_a_part_of_type_audio() -> None:
    part = {"type": "input_audio", "input_audio": {"data": FLAC_TEXT, "format": "flac"}}
    (found,) = job_with(part).media
    assert (found.type, found.media, found.content) == ("audio", media_id(FLAC), FLAC)


def test_a_url_stays_a_url() -> None:
    (found,) = job_with({"type": "image_url", "image_url": {"url": URL}}).media
    assert found.model_dump() == {"type": "image", "url": URL}


def test_parts_of_text_alone_become_one_text() -> None:
    job = job_with({"type": "text", "text": "a"}, {"type": "text", "text": "b"})
    assert job.messages is not None
    assert job.messages[0].content == "a\nb"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        pytest.param({"type": "image", "path": "/etc/passwd"}, "never opened", id="path"),
        pytest.param({"type": "image", "image": "/etc/passwd"}, "use https", id="path-as-image"),
        pytest.param({"type": "image", "url": "file:///etc/passwd"}, "use https", id="file-url"),
        pytest.param({"type": "image", "base64": "<svg/>"}, "not base64", id="not-base64"),
        pytest.param(
            {"type": "image", "url": f"data:image/png;base64,{PNG_TEXT[:9]}\n{PNG_TEXT[9:]}"},
            "line breaks",
            id="line-break",
        ),
        pytest.param({"type": "image", "base64": "iVBO%2B"}, "percent signs", id="percent"),
        pytest.param({"type": "image", "base64": "_-__"}, "standard alphabet", id="base64url"),
        pytest.param({"type": "image", "url": "https://a@b/c"}, "not fetched", id="user-in-url"),
        pytest.param({"type": "image", "image": b"<svg></svg>"}, "PNG, JPEG", id="svg"),
        pytest.param({"type": "image", "image": b""}, "is empty", id="empty"),
        pytest.param({"type": "image", "image": FLAC}, "of the kind audio", id="sound-as-image"),
        pytest.param({"type": "audio", "audio": PNG}, "of the kind image", id="image-as-sound"),
        pytest.param({"type": "image"}, "exactly one of", id="nothing"),
        pytest.param({"type": "image", "media": "med_1"}, "put_media", id="malformed-id"),
        pytest.param({"type": "image", "url": "data:image/png,x"}, "base64", id="plain-data-url"),
        pytest.param({"type": "input_image", "file_id": "file_1"}, "file_id", id="file-id"),
        pytest.param(
            {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "high"}},
            "detail must be auto",
            id="detail",
        ),
        pytest.param({"type": "video", "video": URL}, "type 'video'", id="video"),
        pytest.param({"type": ["image"]}, "type", id="type-is-a-list"),
    ],
)
def test_a_part_that_is_not_read_is_refused_by_name(part: dict[str, Any], words: str) -> None:
    with pytest.raises(JobRejected) as refusal:
        job_with(part)
    assert words in str(refusal.value)
    assert refusal.value.code in ("invalid_request", "unsupported_parameter")


def test_an_assistant_has_no_pictures() -> None:
    with pytest.raises(JobRejected, match="of the assistant"):
        parse_job(
            {"messages": [{"role": "assistant", "content": [{"type": "image", "image": PNG}]}]}
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("explain", ["attribution"], id="explain"),
        pytest.param("beam_search", {"beam_width": 2}, id="beam_search"),
        pytest.param("select", {"by": "decision", "question": "Is it so?"}, id="select"),
    ],
)
def test_what_no_engine_computes_over_pictures_is_refused_by_name(name: str, value: Any) -> None:
    samples = {"n": 2} if name == "select" else {}
    with pytest.raises(JobRejected) as refusal:
        job_with({"type": "image", "image": PNG}, **{name: value}, **samples)
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", name)


def test_the_prefix_and_the_fingerprint_follow_the_content() -> None:
    parts = {"type": "image", "image": PNG}, {"type": "image", "image": PNG + b"other"}
    jobs = [
        job_with(part, {"type": "text", "text": text}) for part in parts for text in ("a?", "b?")
    ]
    assert len({fingerprint(job) for job in jobs}) == 4
    prefixes = [prefix_digest(job) for job in jobs]
    assert prefixes[0] == prefixes[1] != ""
    assert prefixes[0] != prefixes[2]


@pytest.mark.parametrize(
    ("start", "name"),
    [
        pytest.param(b"RIFF\0\0\0\0WEBPVP8 ", "WEBP", id="webp"),
        pytest.param(b"RIFF\0\0\0\0WAVEfmt ", "WAV", id="wav"),
        pytest.param(b"RIFF\0\0\0\0AVI ", None, id="avi"),
        pytest.param(b"\xff\xfb\x90", "MP3", id="mp3"),
        pytest.param(b"\xff\xd8\xff\xe0", "JPEG", id="jpeg"),
        pytest.param(b"\xff\xfe<\0s\0", None, id="utf-16"),
        pytest.param(b"\xff", None, id="one-byte"),
        pytest.param(b"%PDF-1.7", None, id="pdf"),
    ],
)
def test_a_format_is_told_by_its_first_bytes(start: bytes, name: str | None) -> None:
    assert format_of(start) == name


def test_a_file_may_be_named_like_an_id(tmp_path: Path) -> None:
    (tmp_path / "med_scan.png").write_bytes(PNG)
    assert media_part("med_scan.png", "image", tmp_path).media == media_id(PNG)
    assert media_part(media_id(FLAC), "audio").media == media_id(FLAC)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty.png", "the image empty.png is empty"),
        (
            "sound.png",
            "the image sound.png is of the kind audio, but the part is of the kind image",
        ),
        ("none.png", "the image none.png cannot be read: No such file or directory"),
        ("x" * 5000, f"the image {'x' * 200} cannot be read: File name too long"),
        ("http:", "the image http: cannot be read: No such file or directory"),
        ("https://", "the image has a URL that is not fetched: has no host"),
    ],
)
def test_a_file_that_cannot_be_sent_is_named_in_a_sentence(
    source: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "sound.png").write_bytes(FLAC)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        media_part(source, "image", tmp_path)


def test_too_many_pictures_are_refused_with_the_limit() -> None:
    part = {"type": "image", "image": PNG}
    with pytest.raises(JobRejected, match=r"100 pictures and sounds, .* limit is 16"):
        prepare(job_with(*[part] * 100), ProducerSettings())
    prepared = prepare(job_with(*[part] * 100), ProducerSettings(max_media_per_job=100))
    assert len(prepared.media) == 100
    assert len(prepared.new_media) == 1
    with pytest.raises(JobRejected) as refusal:
        job_with(*[part] * 1000)
    assert "1000" in str(refusal.value) or "limit" in str(refusal.value)


def test_a_group_of_jobs_counts_the_content_that_it_sends() -> None:
    settings = ProducerSettings()
    inline = prepare(job_with({"type": "image", "image": PNG}), settings)
    stored = prepare(job_with({"type": "image", "media": media_id(PNG)}), settings)
    assert inline.num_bytes == len(inline.document) + len(PNG)
    assert stored.num_bytes == len(stored.document)
