"""Pictures of Idefics3 models: their tiles, the features in memory, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage

from batchmill.engine import Chat, Engine, EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.media.feature_cache import FeatureCache
from batchmill.engine.media.model import MediaModel

from ...support.tiny_media_models import image, save_idefics3

GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("idefics3")
    save_idefics3(folder)
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def make(loaded: LoadedModel) -> Callable[..., Engine]:
    def make(**settings: Any) -> Engine:
        defaults = {"model": "tiny", "dtype": "float32", "device": "cpu", "max_model_len": 512}
        config = EngineConfig(**{**defaults, "kv_cache_bytes": 4 << 20, **settings})
        return Engine(config, loaded=loaded)

    return make


def model_of(loaded: LoadedModel) -> MediaModel:
    assert loaded.media is not None
    return loaded.media


def chat(text: str = "What?", num_images: int = 1) -> Chat:
    parts = [*[{"type": "image"}] * num_images, {"type": "text", "text": text}]
    return Chat(messages=[{"role": "user", "content": parts}])


def test_tiles_are_counted_as_the_processor_cuts_them(loaded: LoadedModel) -> None:
    model: Any = model_of(loaded)
    sizes = [(1, 1), (1, 300), (300, 1), (33, 31), (64, 64), (65, 64), (47, 211), (211, 47), (3, 5)]
    for size in sizes:
        pictures = [PilImage.new("RGB", size)]
        found = model._processor.preprocess(pictures, return_row_col_info=True)
        expected = found["rows"][0][0], found["cols"][0][0]
        assert model.item_of(image(0, *size)).grid == expected, size


def test_features_are_kept_up_to_a_number_of_bytes(loaded: LoadedModel) -> None:
    model = model_of(loaded)
    items = [model.item_of(image(seed)) for seed in range(3)]
    each_bytes = items[0].num_features * model.hidden_size * 4
    cache = FeatureCache(model, 2 * each_bytes)
    cache.features_of([items[0], items[1], items[0]])
    assert (cache.counts.num_encoded, cache.counts.num_bytes) == (2, 2 * each_bytes)
    cache.features_of([items[0]])
    cache.features_of([items[2]])  # drops the second, which was not used since
    cache.features_of([items[0]])
    counts = cache.counts
    assert (counts.num_encoded, counts.num_found, counts.num_bytes) == (3, 2, 2 * each_bytes)
    assert counts.num_runs == 2
    assert counts.run_time_s > 0
    cache.features_of([items[1]])
    assert cache.counts.num_encoded == 4


def test_features_of_one_batch_do_not_keep_each_other_in_memory(loaded: LoadedModel) -> None:
    model = model_of(loaded)
    found = FeatureCache(model, 0).features_of([model.item_of(image(seed)) for seed in range(3)])
    assert all(each.rows.untyped_storage().nbytes() == each.num_bytes for each in found)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_aborted_request_keeps_no_picture(
    make: Callable[..., Engine], loaded: LoadedModel, num_steps: int
) -> None:
    engine = make(max_num_batched_tokens=9, max_num_seqs=2, media_cache_bytes=0)
    engine.add_request("a", chat(), GREEDY, media=[image(8)])
    for _ in range(num_steps):
        engine.step()
    request = engine._unfinished._trackers["a"].request
    media = request.media
    assert media is not None
    assert (media.held is not None) == (num_steps > 1)
    engine.abort("a")
    while engine.has_unfinished():
        engine.step()
    assert request.media is None


def test_a_picture_that_fails_ends_its_own_request_alone(
    make: Callable[..., Engine], loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = model_of(loaded)
    bad, encode = image(6), model.encode

    def fail(items: Any) -> Any:
        if any(item.medium == bad for item in items):
            raise ValueError("a picture of the tower's nightmares")
        return encode(items)

    monkeypatch.setattr(model, "encode", fail)
    engine = make()
    engine.add_request("bad", chat(), GREEDY, media=[bad])
    engine.add_request("good", chat(), GREEDY, media=[image(7)])
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        outputs |= {each.request_id: each for each in engine.step() if each.finished}
    assert outputs["good"].error is None
    assert outputs["bad"].error is not None
    assert outputs["bad"].error.code == "media_failed"
    assert "ValueError" in outputs["bad"].error.message
    assert "nightmares" not in outputs["bad"].error.message
    assert engine.num_free_blocks == engine.stats().num_blocks


@pytest.mark.parametrize(
    ("settings", "messages", "num_images", "params", "code", "words"),
    [
        pytest.param({"max_model_len": 64}, chat(num_images=4), 4, {}, "context_length_exceeded",
                     "media have", id="features alone too long"),
        pytest.param({"max_model_len": 101}, chat("x" * 80), 1, {}, "context_length_exceeded",
                     "101", id="with text too long"),
        pytest.param({}, chat(), 1, {"truncate_prompt_tokens": 9}, "unsupported_parameter",
                     "truncate_prompt_tokens", id="truncated"),
        pytest.param({}, chat("a <image> b"), 1, {}, "invalid_request", "spell out <image>",
                     id="placeholder in text"),
        pytest.param({}, chat(num_images=2), 1, {}, "invalid_request", "one medium for each",
                     id="too few"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_by_name(
    make: Callable[..., Engine],
    settings: dict[str, Any],
    messages: Chat,
    num_images: int,
    params: dict[str, Any],
    code: str,
    words: str,
) -> None:
    engine = make(**settings)
    media = [image(seed) for seed in range(num_images)]
    with pytest.raises(RequestError, match=words) as refusal:
        engine.add_request("a", messages, SamplingParams(max_tokens=4, **params), media=media)
    assert refusal.value.code == code
    assert not engine.has_unfinished()


def test_a_token_beside_a_picture_that_the_model_lacks_is_refused(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    monkeypatch.setattr(engine._intake, "_vocab_size", ord("z"))  # one token per byte
    with pytest.raises(RequestError, match="a special token that this model does not have"):
        engine.add_request("a", chat("z"), GREEDY, media=[image(1)])


def test_other_settings_of_the_processor_are_another_model(tmp_path: Path) -> None:
    save_idefics3(tmp_path)
    identities = set()
    for longest_edge in (64, 96):
        settings = tmp_path / "preprocessor_config.json"
        text = settings.read_text().replace('"longest_edge": 64', f'"longest_edge": {longest_edge}')
        settings.write_text(text)
        identities.add(load_model(str(tmp_path), dtype="float32", device="cpu").identity)
    assert len(identities) == 2
