"""The model as a whole."""

import keras
import numpy as np
import pytest
from keras import ops

from birdtpu.errors import UserError
from birdtpu.models.backbones import BACKBONES, build_backbone
from birdtpu.models.build import SoundEventModel, clip_scores, pcm_to_float
from birdtpu.recipe import load_recipe

TINY = ["frontend.n_mels=32", "audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=2.0",
        "predict.hop_seconds=0.5", "model.features=16"]  # fmt: skip
RNG = np.random.default_rng(0)


def numpy(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return SoundEventModel(load_recipe("quickstart", TINY), 4)


def batch(rows: int = 8, samples: int = 40000) -> dict:
    return {
        "audio": RNG.standard_normal((rows, samples)).astype(np.float32) * 0.1,
        "targets": np.eye(4, dtype=np.float32)[np.arange(rows) % 4],
        "target_mask": np.ones((rows, 4), np.float32),
        "weight": np.ones(rows, np.float32),
        "seed": np.arange(rows, dtype=np.int32),
    }


def test_outputs_have_the_contracts_shapes(model):
    out = numpy(model(RNG.random((3, 32000)).astype(np.float32)))
    segments = out["segmentwise"].shape[1]
    assert {key: value.shape for key, value in out.items()} == {
        "clipwise": (3, 4), "segmentwise": (3, segments, 4), "norm_att": (3, segments, 4), "embedding": (3, 16),
        "clipwise_logits": (3, 4), "segmentwise_logits": (3, segments, 4), "framewise": (3, model.frames, 4),
    }  # fmt: skip
    at = [i * segments // model.frames for i in range(model.frames)]
    np.testing.assert_array_equal(out["framewise"], out["segmentwise"][:, at])
    assert all((out[key] >= 0).all() and (out[key] <= 1).all() for key in ("clipwise", "segmentwise", "norm_att"))


def test_examples_are_independent(model):
    audio = RNG.standard_normal((2, 32000)).astype(np.float32) * np.array([[0.5], [5e-4]], np.float32)
    both = numpy(model(audio))["clipwise"]
    for i in range(2):
        np.testing.assert_allclose(both[i], numpy(model(audio[i : i + 1]))["clipwise"][0], atol=1e-5)


def test_loudness_does_not_matter(model):
    audio = RNG.standard_normal((1, 32000)).astype(np.float32) * 0.1
    np.testing.assert_allclose(numpy(model(audio))["clipwise"], numpy(model(audio * 4))["clipwise"], atol=1e-5)


def test_silence_is_finite(model):
    assert np.isfinite(numpy(model(np.zeros((1, 32000), np.float32)))["clipwise"]).all()


def test_heads_are_what_they_say(model):
    out = numpy(model(RNG.random((2, 32000)).astype(np.float32)))
    np.testing.assert_array_equal(numpy(clip_scores(out, "clipwise")), out["clipwise"])
    np.testing.assert_array_equal(numpy(clip_scores(out, "segmentwise")), out["segmentwise"].max(axis=1))
    product = (out["segmentwise"] * out["norm_att"]).max(axis=1)
    np.testing.assert_allclose(numpy(clip_scores(out, "attention")), product, rtol=1e-6)
    with pytest.raises(UserError, match="head 'framewise': one of clipwise"):
        clip_scores(out, "framewise")


def test_augmented_batches_depend_on_their_seeds_alone(model):
    data = batch()
    image, labels = numpy(model.augmented(data))
    again = numpy(model.augmented(data)[0])
    np.testing.assert_array_equal(image, again)
    assert image.shape == (8, model.frames, 32) and labels["targets"].shape == labels["target_mask"].shape == (8, 4)
    other = numpy(model.augmented({**data, "seed": data["seed"] + 100})[0])
    assert np.abs(other - image).mean() > 0.01


def test_without_augmentation_training_sees_what_inference_sees():
    off = ["augment.mixup_probability=0", "augment.pitch_probability=0", "augment.tempo_probability=0",
           "augment.time_masks=0", "augment.frequency_masks=0", "audio.margin_seconds=0"]  # fmt: skip
    plain = SoundEventModel(load_recipe("quickstart", [*TINY, *off]), 4)
    data = batch(8, 32000)
    np.testing.assert_allclose(numpy(plain.augmented(data)[0]), numpy(plain.log_mel(data["audio"])), atol=1e-5)


OFF = ["augment.mixup_probability=0", "augment.pitch_probability=0", "augment.tempo_probability=0",
       "augment.time_masks=0", "augment.frequency_masks=0", "audio.margin_seconds=0"]  # fmt: skip
FRONTENDS = {
    "pcen": ["frontend.scale=pcen", "frontend.pcen_start=frame"],
    "gentle pcen": ["frontend.scale=pcen", "frontend.pcen_smoothing_coef=0.1", "frontend.pcen_gain=0.5",
                    "frontend.pcen_amplitude_scale=1", "frontend.pcen_half=0.05"],
    "windows, standardised, fixed dB, ramp": [
        "frontend.win_lengths=[1024, 61]", "frontend.frequency_ramp=true", "frontend.scale=fixed_decibel",
        "frontend.standardize=true", "frontend.htk=true", "frontend.mel_norm=none",
        "model.backbone=MobileNetV3Small", "frontend.image_size=[32, 32]",
    ],
}  # fmt: skip
SOUND = ["augment.mixup_on=waveform", "augment.mixup_shares=weights", "augment.mixup_probability=0.8",
         "augment.partner_probability=0.5", "augment.background_probability=0.5",
         "augment.gaussian_noise_probability=0.3", "augment.uniform_noise_probability=0.3",
         "augment.pink_noise_probability=0.3"]  # fmt: skip


@pytest.mark.parametrize("name", FRONTENDS)
def test_each_frontend_shows_training_what_inference_sees(name):
    plain = SoundEventModel(load_recipe("quickstart", [*TINY, *OFF, *FRONTENDS[name]]), 4)
    data = batch(8, 32000)
    data["audio"][1] *= np.float32(1e-3)
    whole = numpy(plain.log_mel(data["audio"]))
    np.testing.assert_allclose(numpy(plain.augmented(data)[0]), whole, atol=1e-5)
    np.testing.assert_allclose(numpy(plain.log_mel(data["audio"][1:2]))[0], whole[1], atol=1e-5)
    if "fixed dB" in name:
        np.testing.assert_allclose(numpy(plain.log_mel(data["audio"] * 30)), whole, atol=1e-4)
    silent = numpy(plain.log_mel(np.zeros((1, 32000), np.float32)))
    assert np.isfinite(silent).all() and np.ptp(silent) == 0
    assert np.isfinite(numpy(plain(np.zeros((1, 32000), np.float32)))["clipwise"]).all()
    assert whole.std() > 0.01 and whole.shape[3:] == ((2,) if "windows" in name else ())


@pytest.mark.parametrize("name", [name for name in FRONTENDS if name != "gentle pcen"])
def test_each_frontend_augments_the_same_eager_and_compiled(name):
    from birdtpu.inference.runtimes.keras import compiled

    floor = [] if "fixed dB" in name else ["augment.floor_probability=0.5"]
    model = SoundEventModel(load_recipe("quickstart", [*TINY, *FRONTENDS[name], *SOUND, *floor]), 4)
    extra = {key: RNG.standard_normal((8, 40000)).astype(np.float32) for key in ("partner_audio", "background_audio")}
    data = batch() | extra
    eager, fast = numpy(model.augmented(data)), numpy(compiled(model.augmented)(data))
    np.testing.assert_allclose(fast[0], eager[0], atol=2e-3)
    for name in eager[1]:
        np.testing.assert_allclose(fast[1][name], eager[1][name], atol=1e-6)
    assert np.isfinite(eager[0]).all() and (eager[0].shape[:3] == (8, model.frames, 32))
    out = numpy(model.network(eager[0], training=False))
    assert out["clipwise"].shape == (8, 4) and np.isfinite(out["clipwise_logits"]).all()


def test_mixed_power_keeps_the_level_where_the_scale_sees_it():
    settings = [*TINY, *OFF, "augment.mixup_probability=0.5", "frontend.scale=fixed_decibel"]
    model = SoundEventModel(load_recipe("quickstart", settings), 4)
    data = batch(16, 32000)
    data["audio"] *= np.geomspace(1e-4, 1, 16, dtype=np.float32)[:, None]
    data["targets"] = data["target_mask"] = np.eye(16, dtype=np.float32)
    image, labels = numpy(model.augmented(data))
    alone = (labels["targets"] == data["targets"]).all(axis=1)
    assert alone.any() and not alone.all()
    np.testing.assert_allclose(image[alone], numpy(model.log_mel(data["audio"]))[alone], atol=1e-4)
    # A mixture is as loud as its own example: within a few dB of 80.
    assert np.abs(image.mean(axis=(1, 2)) - numpy(model.log_mel(data["audio"])).mean(axis=(1, 2))).max() < 0.03


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.backbone=ResNet50", "frontend.win_lengths=[512, 64]"], r"frontend\.win_lengths: .*give 3 windows"),
        (
            ["model.backbone=ResNet50", "frontend.frequency_ramp=true", "frontend.win_lengths=[512, 64, 32]"],
            r"frontend\.win_lengths: the image has 3 channels .*ResNet50; give 2 windows",
        ),
    ],
)
def test_channels_that_do_not_fit_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        SoundEventModel(load_recipe("quickstart", [*TINY, *settings]), 4)


def test_the_small_network_takes_as_many_channels_as_there_are():
    for settings, channels in (
        (["frontend.frequency_ramp=true"], 2),
        (["frontend.win_lengths=[512, 64, 32]"], 3),
        ([], 1),
    ):
        network = SoundEventModel(load_recipe("quickstart", [*TINY, *settings]), 4).network
        assert network.get_layer("small_cnn").input.shape[-1] == channels


def test_pcm16_is_scaled_on_the_device():
    pcm = np.array([[-32768, 16384], [100, 0]], np.int16)
    gain = np.array([1 / 32768, 0.5], np.float32)
    np.testing.assert_allclose(numpy(pcm_to_float({"audio": pcm, "audio_gain": gain})), [[-1, 0.5], [50, 0]])


def test_too_many_bands_are_named():
    with pytest.raises(UserError, match=r"frontend\.n_mels: 200 bands"):
        SoundEventModel(load_recipe("quickstart", [*TINY, "frontend.n_mels=200"]), 4)


def test_birdcall2020_is_the_write_ups_network():
    recipe = load_recipe("birdcall2020")
    assert recipe.frontend.image_size == (224, 224) and recipe.model.backbone == "ResNet50"
    model = SoundEventModel(recipe, 264, weights="none")
    assert model.frames == 501
    shapes = {key: tuple(value.shape[1:]) for key, value in model.network.output.items()}
    assert shapes["segmentwise"] == (7, 264) and shapes["embedding"] == (1024,)
    # ResNet50 without its top has 23,587,712 weights, of which the 26,560 biases before a BatchNorm are not ours; the
    # dense layer and the two convolutions come on top.
    assert model.network.count_params() == 23_587_712 - 26_560 + (2048 * 1024 + 1024) + 2 * (1024 * 264 + 264)


def difference(output, truth) -> float:
    """The largest, as a share of the truth's largest: an untrained EfficientNetB's is about 1e-5."""
    output, truth = numpy(output), numpy(truth)
    return np.abs(output - truth).max() / np.abs(truth).max()


@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0", "ResNet50V2", "ConvNeXtTiny"])
def test_backbones_clone_to_the_same_function(name, tmp_path):
    keras.utils.set_random_seed(0)
    original = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(64, 64, 3))
    path = str(tmp_path / "backbone.weights.h5")
    original.save_weights(path)
    ours = build_backbone(name, (64, 64), path)
    x = RNG.random((1, 64, 64, 3)).astype(np.float32) * 255
    assert difference(ours(x), original(x)) < 1e-4


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Keras' ResNet50 with biases, statistics and scales of all signs as after training, and its file."""
    keras.utils.set_random_seed(0)
    original = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    rng = np.random.default_rng(2)
    for layer in original.layers:
        for weight in layer.weights:
            if weight.name == "moving_variance":
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif len(weight.shape) == 1:
                weight.assign(weight + rng.normal(0, 0.5, weight.shape))
    path = tmp_path_factory.mktemp("resnet") / "resnet.weights.h5"
    original.save_weights(path)
    return original, str(path)


@pytest.mark.parametrize(("size", "paired"), [((64, 64), False), ((64, 32), True), ((107, 75), True)])
def test_resnet_clones_to_the_same_function(resnet, size, paired):
    original, path = resnet
    theirs = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(*size, 3))
    theirs.set_weights(original.get_weights())
    ours = build_backbone("ResNet50", size, path, for_tpu=paired)
    x = RNG.random((2, *size, 3)).astype(np.float32) * 255
    assert difference(ours(x), theirs(x)) < 1e-4
    # In training too: the batch's statistics take a bias away again. Only so deep as they are of many pixels.
    ours, theirs = (keras.Model(each.input, each.get_layer("conv3_block1_out").output) for each in (ours, theirs))
    assert difference(ours(x, training=True), theirs(x, training=True)) < 1e-4


def test_the_weights_of_a_tpu_load_on_a_cpu(tmp_path):
    settings = [*TINY, "model.backbone=ResNet50", "frontend.image_size=[64, 64]"]
    there, here = (
        SoundEventModel(load_recipe("quickstart", settings), 4, platform=platform) for platform in ("tpu", "cpu")
    )
    there.network.save_weights(tmp_path / "run.weights.h5")
    here.network.load_weights(tmp_path / "run.weights.h5")
    audio = RNG.standard_normal((2, 32000)).astype(np.float32) * 0.1
    maps = [m.network.get_layer("resnet50").get_layer("conv2_block1_out").output.shape for m in (there, here)]
    assert maps == [(None, 16, 8, 512), (None, 16, 16, 256)]
    np.testing.assert_allclose(numpy(there(audio))["clipwise"], numpy(here(audio))["clipwise"], atol=1e-4)


def test_bfloat16_is_close_to_float32():
    settings = [*TINY, "model.backbone=ResNet50", "frontend.image_size=[64, 64]"]
    keras.utils.set_random_seed(0)
    exact, short = (
        SoundEventModel(load_recipe("quickstart", settings), 4, precision=precision, platform="tpu")
        for precision in ("float32", "mixed_bfloat16")
    )
    short.network.set_weights(exact.network.get_weights())
    audio = RNG.standard_normal((4, 32000)).astype(np.float32) * 0.1
    exact, short = numpy(exact(audio))["clipwise_logits"], numpy(short(audio))["clipwise_logits"]
    assert exact.dtype == short.dtype == np.float32
    # Fifty layers of 8 bits each: 2 ** -8 by the square root of fifty is 0.03.
    np.testing.assert_allclose(short, exact, atol=0.04 * np.abs(exact).max())


def test_imagenets_weights_are_the_same_function_and_stay_it_in_a_run(tmp_path, monkeypatch):
    # ImageNet's weights of EfficientNetB normalize their pixels: the file stands in for Keras' download.
    published = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    normalization = published.get_layer(index=2)
    normalization.adapt_mean.assign([0.485, 0.456, 0.406])
    normalization.adapt_variance.assign([0.052, 0.050, 0.051])
    published.save_weights(tmp_path / "published.weights.h5")
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(tmp_path / "published.weights.h5"))
    original = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(32, 32, 3))
    x = RNG.random((1, 32, 32, 3)).astype(np.float32) * 255

    trained = build_backbone("EfficientNetB0", (32, 32), "imagenet")
    assert difference(trained(x), original(x)) < 1e-3
    trained.save_weights(tmp_path / "run.weights.h5")
    loaded = build_backbone("EfficientNetB0", (32, 32))
    loaded.load_weights(tmp_path / "run.weights.h5")
    assert difference(loaded(x), original(x)) < 1e-3
    # What Keras does for ImageNet's weights and no others, this test would see.
    published.load_weights(tmp_path / "published.weights.h5")
    assert difference(published(x), original(x)) > 0.1


@pytest.mark.parametrize(
    ("backbone", "settings", "size"),
    [
        ("small_cnn", ["frontend.n_mels=8"], "51 x 8"),
        ("InceptionV3", ["frontend.n_mels=64"], "51 x 64"),
        ("EfficientNetB0", ["frontend.image_size=[8, 8]"], "8 x 8"),
    ],
)
def test_images_too_small_for_the_backbone_are_named(backbone, settings, size):
    recipe = load_recipe("quickstart", [*TINY, f"model.backbone={backbone}", *settings])
    with pytest.raises(UserError, match=rf"model\.backbone: .* {size} pixels .* {backbone}.*frontend\.image_size"):
        SoundEventModel(recipe, 4)


def test_a_recipe_may_have_any_name():
    assert SoundEventModel(load_recipe("quickstart", [*TINY, "name=mine/2nd try"]), 4).network


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(UserError, match=r"other\.weights\.h5: does not fit the backbone small_cnn"):
        build_backbone("small_cnn", (64, 32), str(path))
    with pytest.raises(UserError, match=r"absent\.weights\.h5: no such file"):
        build_backbone("small_cnn", (64, 32), str(tmp_path / "absent.weights.h5"))
    with pytest.raises(UserError, match="no backbone 'ResNet5'"):
        build_backbone("ResNet5", (64, 32))
    with pytest.raises(UserError, match="no ImageNet weights"):
        build_backbone("small_cnn", (64, 32), "imagenet")


def test_the_promised_backbones_are_there():
    promised = {"ResNet50", "ResNet101", *(f"EfficientNetB{i}" for i in range(4)), "InceptionV3", "MobileNetV3Large"}
    assert promised <= set(BACKBONES)


def with_head(kind: str, *settings: str) -> SoundEventModel:
    keras.utils.set_random_seed(1)
    given = [*TINY, f"model.head={kind}", "predict.head=clipwise", "model.window_seconds=0.4", *settings]
    return SoundEventModel(load_recipe("quickstart", given), 4)


@pytest.mark.parametrize("kind", ["mean", "sliding"])
def test_other_heads_have_the_contracts_outputs(kind):
    other = with_head(kind)
    out = numpy(other(RNG.random((3, 32000)).astype(np.float32)))
    segments, pooled = out["segmentwise_logits"].shape[1], {"mean": np.mean, "sliding": np.max}[kind]
    assert out["framewise"].shape == (3, other.frames, 4) and out["segmentwise"].shape == (3, segments, 4)
    np.testing.assert_allclose(out["clipwise_logits"], pooled(out["segmentwise_logits"], axis=1), atol=1e-5)
    np.testing.assert_allclose(out["clipwise"], 1 / (1 + np.exp(-out["clipwise_logits"])), rtol=1e-5)
    assert out["embedding"].shape == (3, 96 if kind == "mean" else 16)
    with pytest.raises(UserError, match="head 'attention': a model of another head has none; take clipwise"):
        clip_scores(out, "attention")


def test_the_mean_head_is_a_global_average_and_a_dense_layer():
    other = with_head("mean")
    audio = RNG.random((2, 32000)).astype(np.float32)
    out, layer = numpy(other(audio)), other.network.get_layer("head")
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(out["clipwise_logits"], out["embedding"] @ kernel[0] + bias, atol=1e-5)


def test_the_sliding_head_hears_no_further_than_its_window():
    narrow, wide = with_head("sliding", "model.window_seconds=0.1"), with_head("sliding", "model.window_seconds=0.9")
    assert narrow.network.get_layer("features").kernel_size < wide.network.get_layer("features").kernel_size
    segments = narrow.network.output["segmentwise"].shape[1]
    width = round(0.9 * segments)
    assert wide.network.get_layer("features").kernel_size == (width,)
    features = wide.network.get_layer("dropout_before")
    head = keras.Model(features.input, wide.network.output["segmentwise"])
    x = RNG.standard_normal((1, *features.input.shape[1:])).astype(np.float32)
    before, middle = numpy(head(x)), segments // 2
    for offset in range(segments):
        changed = x.copy()
        changed[:, offset] += 3
        heard = bool(np.abs(numpy(head(changed)) - before)[0, middle].max() > 0)
        # An even window has one segment more behind than before.
        assert heard == ((width - 1) // 2 >= middle - offset and offset - middle <= width // 2)


def test_the_best_clip_of_a_recording_is_trained_on():
    model = with_head("mean", "train.instances=3", "audio.margin_seconds=0", "audio.record_seconds=3.0")
    audio = RNG.standard_normal((8, 3, 32000)).astype(np.float32) * 0.1
    audio[:, 1] *= 1e-5  # Silent: never chosen.
    data = {**batch(8, 1), "audio": audio, "clip_mask": np.ones((8, 3), np.float32)}
    logits = numpy(model.network(model.log_mels(data), training=False)["clipwise_logits"]).reshape(8, 3, 4)
    chosen = numpy(model.choose(data, logits.reshape(24, 4))["audio"])
    own = logits[np.arange(8), :, np.arange(8) % 4]
    best = np.where(own[:, 0] >= own[:, 2], 0, 2)
    assert len(set(best)) == 2
    np.testing.assert_array_equal(chosen, audio[np.arange(8), best])
    image, labels = numpy(model.augmented(model.choose(data, logits.reshape(24, 4))))
    assert image.shape == (8, model.frames, 32) and np.isfinite(image).all() and labels["targets"].shape == (8, 4)
