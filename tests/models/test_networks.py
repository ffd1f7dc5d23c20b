"""The networks that are timm's: the same function, under the same names."""

import functools

import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import layers, ops

from birdtpu.errors import UserError
from birdtpu.layers.batch_norm import BatchNorm
from birdtpu.layers.dropout import SeededDropout, seed_scope
from birdtpu.models.backbones import BACKBONES, build_backbone
from birdtpu.models.build import SoundEventModel
from birdtpu.models.networks import timm_weights
from birdtpu.recipe import load_recipe
from tests.models.random_weights import random_images, random_weights

# Windows of attention do not divide its maps, and the sides of the maps are odd here and there.
SIZE = (75, 100)
# Parameters of timm's networks without a classifier, and five channels of their last pixel of the second image, from
# timm 1.0.31 by benchmarks/timm.py, with the weights and images of tests/models/random_weights.py.
TIMM = {
    "ResNet34": (21_284_672, (3, 4, 512), (0.73011, 1.82619, 4.16673, 2.5274, 0.65948)),
    "MNASNet100": (3_102_312, (3, 4, 1280), (13.78702, 0.0, 0.0, 0.0, 11.37412)),
    "EfficientViTB0": (682_608, (3, 4, 128), (-0.06636, 10.36807, -6.27533, 12.74305, 2.64876)),
    "EfficientViTM3": (6_578_500, (2, 2, 320), (-2.53242, 1.60039, -2.7569, -2.94294, -7.5152)),
    "ECANFNetL0": (21_838_924, (3, 4, 2304), (-0.27832, -0.11292, 0.28752, 2.24322, 0.40547)),
}
FINE = (0.96998, 1.40186, 1.06794, 0.26329, 0.63254)
IMAGES = random_images(2, SIZE, seed=2)
DROP_PATH = 0.4
TINY = ["frontend.n_mels=32", "audio.clip_seconds=1.0", "audio.margin_seconds=0.25", "audio.record_seconds=2.0",
        "predict.hop_seconds=0.5", "model.features=16", "frontend.image_size=[64, 64]",
        "model.backbone=EfficientViTB0"]  # fmt: skip


def numpy(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)


def shapes(model) -> dict:
    return {key: value.shape for key, value in timm_weights.state(model).items()}


def filled(name: str, folder, **options):
    """A network with random weights, by timm's names from a file."""
    model, path = build_backbone(name, SIZE, **options), str(folder / f"{name}.safetensors")
    safetensors.numpy.save_file(random_weights(shapes(model), seed=1), path)
    timm_weights.load(model, path, BACKBONES[name].classifier, name)
    return model


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return functools.cache(lambda name: filled(name, tmp_path_factory.mktemp("weights"), drop_path=DROP_PATH))


@pytest.fixture(params=TIMM)
def network(request, networks):
    return request.param, networks(request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest of them, its file, and its map of the images."""
    folder = tmp_path_factory.mktemp("small")
    model = filled("EfficientViTB0", folder)
    return model, str(folder / "EfficientViTB0.safetensors"), numpy(model(IMAGES))


def close(output, truth, share: float = 1e-4) -> None:
    np.testing.assert_allclose(output, truth, atol=share * np.abs(truth).max())


def test_networks_equal_timms_and_drop_nothing_at_inference(network):
    name, model = network
    parameters, shape, numbers = TIMM[name]
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == parameters
    out = numpy(model(IMAGES))
    assert out.shape == (2, *shape)
    close(out[1, -1, -1, :5], numbers)


def test_examples_are_independent(network):
    _, model = network
    both = IMAGES * np.array([1, 1e-3], np.float32)[:, None, None, None]
    out = numpy(model(both))
    close(out[1:], numpy(model(both[1:])), 1e-5)
    assert np.abs(out[0] - out[1]).max() > 0.1


def test_weights_leave_under_timms_names_as_they_came(network):
    _, model = network
    state = timm_weights.state(model)
    for key, value in random_weights(shapes(model), seed=1).items():
        np.testing.assert_array_equal(state[key], value)


def test_rates_of_dropped_branches_rise_linearly(network):
    name, model = network
    rates = [layer.rate for layer in model.layers if isinstance(layer, SeededDropout)]
    steps = np.unique(np.round(rates, 6))
    assert rates == sorted(rates)
    # timm's rule for MnasNet begins with a block that has no branch, and would end one block later.
    assert rates[-1] == pytest.approx(DROP_PATH * 15 / 17 if name == "MNASNet100" else DROP_PATH)
    step = (
        DROP_PATH
        / {"ResNet34": 15, "MNASNet100": 17, "EfficientViTB0": 10, "EfficientViTM3": 5, "ECANFNetL0": 11}[name]
    )
    np.testing.assert_allclose(steps / step, np.round(steps / step), atol=1e-4)
    assert len(steps) >= 6


def test_branches_are_dropped_example_by_example():
    model = build_backbone("EfficientViTB0", (64, 64), drop_path=0.8)
    for layer in model.layers:
        if isinstance(layer, BatchNorm):
            # The batch's statistics would join the examples.
            layer.trainable = False
    images = np.repeat(random_images(1, (64, 64), seed=2), 4, axis=0)
    with seed_scope(np.arange(4, dtype=np.int32)):
        together = numpy(model(images, training=True))
    assert len({each.tobytes() for each in together}) == 4
    with seed_scope(np.array([2], np.int32)):
        close(together[2:3], numpy(model(images[:1], training=True)), 1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="by TensorFlow's tape")
def test_every_weight_has_a_finite_gradient(network):
    import tensorflow as tf

    _, model = network
    before = model.get_weights()
    with seed_scope(np.arange(2, dtype=np.int32)), tf.GradientTape() as tape:
        loss = ops.mean(ops.square(model(IMAGES, training=True)))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.set_weights(before)
    assert None not in gradients
    assert all(np.isfinite(gradient).all() for gradient in map(ops.convert_to_numpy, gradients))
    # Some branches are dropped for both examples, and a pixel alone in its window needs no queries.
    assert np.mean([np.abs(ops.convert_to_numpy(gradient)).max() > 0 for gradient in gradients]) > 0.5


def test_without_its_stems_pooling_a_map_is_twice_as_fine(tmp_path):
    model = filled("ResNet34", tmp_path, stem_pool=False)
    out = numpy(model(IMAGES))
    assert out.shape == (2, 5, 7, 512)
    close(out[1, -1, -1, :5], FINE)


def test_files_of_timm_load_without_their_classifier(small, tmp_path):
    model, path, truth = small
    # Counts and a classifier, as timm's own files have them.
    weights = safetensors.numpy.load_file(path)
    weights |= {"stem.in_conv.norm.num_batches_tracked": np.array(7), "head.classifier.4.bias": np.zeros(1000)}
    np.savez(tmp_path / "timm.npz", **weights)
    close(numpy(build_backbone("EfficientViTB0", SIZE, str(tmp_path / "timm.npz"))(IMAGES)), truth, 1e-6)
    timm_weights.save(model, str(tmp_path / "saved.safetensors"))
    saved = safetensors.numpy.load_file(tmp_path / "saved.safetensors")
    np.testing.assert_equal(saved, safetensors.numpy.load_file(path))
    model.save_weights(tmp_path / "own.weights.h5")
    own = build_backbone("EfficientViTB0", SIZE, str(tmp_path / "own.weights.h5"), drop_path=0.1)
    close(numpy(own(IMAGES)), truth, 1e-6)


KEY = "stages.3.blocks.2.local_module.main.inverted_conv.conv.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY: None}, f"EfficientViTB0 .it lacks {KEY}"),
        ({KEY: np.zeros(511, np.float32)}, rf"{KEY} has the shape \(511,\), not \(512,\)"),
        ({KEY: np.full(512, np.nan, np.float32)}, f"{KEY} does not hold finite floats"),
        ({KEY: np.zeros(512, np.complex64)}, f"{KEY} does not hold finite floats"),
        ({"stages.4.weight": np.zeros(1, np.float32)}, r"the network has no stages\.4\.weight"),
    ],
)
def test_files_that_do_not_fit_change_nothing_and_name_the_weight(small, tmp_path, change, message):
    model, path, truth = small
    weights = {key: value * 0 for key, value in safetensors.numpy.load_file(path).items()} | change
    safetensors.numpy.save_file({key: value for key, value in weights.items() if value is not None}, tmp_path / "x")
    with pytest.raises(UserError, match=message):
        timm_weights.load(model, str(tmp_path / "x"), "head.", "the backbone EfficientViTB0")
    np.testing.assert_array_equal(numpy(model(IMAGES)), truth)


def test_other_files_are_refused(small, tmp_path):
    cut, pickled = tmp_path / "cut.safetensors", tmp_path / "pickled.npz"
    cut.write_bytes(b"\x08\x00\x00")
    np.savez(pickled, weight=np.array([{}], object))
    (tmp_path / "empty.npz").write_bytes(b"")
    for path in (cut, pickled, tmp_path / "empty.npz", tmp_path / "absent.safetensors"):
        with pytest.raises(UserError, match=rf"{path.name}: no file of weights \(.+\); give a \.safetensors"):
            timm_weights.load(small[0], str(path), "head.", "it")
    with pytest.raises(UserError, match=r"ResNet50 takes a \*\.weights\.h5; timm's files are for ResNet34, MNASNet100"):
        build_backbone("ResNet50", SIZE, str(cut))
    for name in TIMM:
        with pytest.raises(UserError, match=r"model\.safetensors of https://huggingface\.co/timm/\w+\.\w+ and set"):
            build_backbone(name, SIZE, "imagenet")


def test_attentions_biases_are_resized_as_torch_does():
    # torch 2.13: interpolate((arange(9.0) ** 2).view(1, 1, 3, 3), size, mode="bicubic", antialias=True).
    biases = np.arange(9, dtype=np.float32)[None] ** 2
    np.testing.assert_allclose(
        timm_weights._resized(biases, 2), [[2.871166, 8.197848, 30.284525, 47.044525]], rtol=1e-5
    )
    finer = [-0.506015, -0.228327, 1.267337, 3.043328, 3.519798, 6.021556, 10.756741, 14.756803]
    np.testing.assert_allclose(timm_weights._resized(biases, 4)[0, :8], finer, rtol=1e-4)
    np.testing.assert_array_equal(timm_weights._resized(biases, 3), biases)
    constant = timm_weights._resized(np.ones((2, 16), np.float32), 7)
    np.testing.assert_allclose(constant, np.ones((2, 49)), rtol=1e-6)


@pytest.mark.parametrize("name", ["EfficientViTB0", "ECANFNetL0"])
def test_bfloat16_is_close_to_float32(name, networks, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        short = filled(name, tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in short.trainable_variables} == {"float32"}
    out, truth = numpy(short(IMAGES)).astype(np.float32), numpy(networks(name)(IMAGES))
    # Layers of 8 bits each: 2 ** -8 by the square root of fifty is 0.03.
    assert np.abs(out - truth).max() < 0.04 * np.abs(truth).max()


def test_a_run_needs_its_backbones_file_no_more(small, tmp_path):
    settings = [*TINY, f"model.weights={small[1]}", "model.drop_path=0.2"]
    first = SoundEventModel(load_recipe("quickstart", settings), 3)
    first.network.save_weights(tmp_path / "run.weights.h5")
    later = SoundEventModel(load_recipe("quickstart", settings), 3, weights="none")
    later.network.load_weights(tmp_path / "run.weights.h5")
    audio = np.random.default_rng(0).standard_normal((2, 32000)).astype(np.float32) * 0.1
    np.testing.assert_allclose(numpy(later(audio))["clipwise"], numpy(first(audio))["clipwise"], atol=1e-6)
    # A picture's pixels are normalized by ImageNet's means and deviations.
    image = next(layer for layer in first.network.layers if layer.__class__.__name__ == "Image")
    white = numpy(image(np.ones((1, *image.input.shape[1:]), np.float32)))[0, 0, 0]
    np.testing.assert_allclose(white, (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)


def test_keras_networks_take_the_rate_of_dropped_branches_too():
    theirs = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    ours = build_backbone("EfficientNetB0", (32, 32), drop_path=0.4)
    rates = {layer.name: layer.rate for layer in theirs.layers if isinstance(layer, layers.Dropout)}
    assert max(rates.values()) == pytest.approx(0.2 * 14 / 16)
    assert {name: ours.get_layer(name).rate for name in rates} == pytest.approx({n: 2 * r for n, r in rates.items()})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ResNet50", {"stem_pool": False}, r"model\.stem_pool: not for ResNet50; .*: ResNet34$"),
        ("EfficientViTB0", {"stem_pool": False}, r"model\.stem_pool: not for EfficientViTB0"),
        ("small_cnn", {"drop_path": 0.0}, r"model\.drop_path: not for small_cnn; .*: EfficientNetB0, .*, ECANFNetL0$"),
        ("InceptionV3", {"drop_path": 0.1}, r"model\.drop_path: not for InceptionV3"),
    ],
)
def test_options_that_a_backbone_lacks_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build_backbone(name, (64, 64), **options)


def test_images_too_small_for_a_window_are_named():
    with pytest.raises(UserError, match=r"model\.backbone: an image of 64 x 15 pixels is too small for EfficientViTM3"):
        build_backbone("EfficientViTM3", (64, 15))
