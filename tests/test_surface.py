"""What vljax offers to programs that import it: a list that is kept, every argument told."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vljax.errors import UserError, of_extra

ROOT = Path(__file__).parents[1]

# A name that goes from here breaks programs; one that comes is a promise.
OFFERED = {
    "vljax": """
        __version__ load save systems
    """,
    "vljax.ops": """
        GumbelMatching GumbelSinkhorn PlackettLuce SideMask attention bethe_permanent
        block_tucker clip_scale compact_bilinear contrastive_loss conv2d cosine count_sketch
        factorised gumbel_kl gumbel_one_hot inside_outside_attention inside_outside_weights
        interpolate join_prompts l2_normalise late_interaction late_interaction_loss
        linear_sum_assignment log_bethe_permanent log_permanent nearest normalise pixel_mask
        resize_nearest schedule_strength signed_sqrt signed_unit sinkhorn sketch_hashes
        standardise straight_through to_levels to_pixels to_unit token_mask tucker
    """,
    "vljax.diffusion": """
        BitsPerDimension Denoiser Encoding Guidance Loss LossSecondMomentTimesteps Posterior
        Process Progress ReverseStep Schedule TimestepSampler UniformTimesteps
        autoencoder_loss bits_per_dimension blended_diffusion classifier_score condition_mean
        condition_score content cosine_schedule ddim ddim_inversion ddpm denoise denoising_loss
        discretized_gaussian_log_likelihood dpm_solver_pp_2m draw_latents example_keys guided
        hybrid_loss ilvr interpret keep_from language linear_schedule make_process named_loss
        named_schedule named_timestep_sampler noise_from_v noise_from_x0 noised_reference
        noised_trajectory normal_kl on_predicted_x0 p_mean_variance parse_timesteps progress_bar
        q_posterior q_sample report_to respace sample scaled_linear_schedule schedule_from_betas
        score_guidance sdedit section_timesteps semantic_score shown_to simple_loss
        spaced_timesteps start_noise step_noise structure style v_from_x0 vlb_loss weighted_sum
        x0_from_noise x0_from_v
    """,
    "vljax.metrics": """
        Detection Distance Diversity Gaussian GenevaScore Guessed Layout Moments Report Row
        Score ShapeScore accuracy area_under_curve bleu bleu_13a captioned_back cider
        cider_scores clip_score coco_bleu coco_rouge_l correct_keypoints deletion_curve
        diversity draw_distractors earth_movers_distance embedding_distance frechet_distance
        generation_steps geneva_score guess_rightness inception_features inception_logits
        inception_score iou_within layout_of load_lpips lpips_distance mask_iou mass_on match
        mean_geneva_score mean_score meteor moments normalise_answer normalised_levenshtein
        order_rank_correlation paper_rows part_of_speech_statistics pointing_game precedence
        predict_answers psnr r_precision random_point_distance rank_correlation
        removal_distances retrieval_accuracy rouge rsim score semantic_object_accuracy
        shape_score spice ter text_scores to_grid top_iou vqa_accuracy
    """,
}


@pytest.mark.parametrize("room", OFFERED)
def test_the_list_is_kept(room):
    module = importlib.import_module(room)
    assert sorted(module.__all__) == sorted(OFFERED[room].split())
    # Where a module is named like its function, the package holds the function.
    wrong = [name for name in module.__all__ if inspect.ismodule(getattr(module, name))]
    assert wrong == [name for name in wrong if name == "systems"]


def arguments(thing):
    """The names of which a docstring owes an account."""
    if dataclasses.is_dataclass(thing):
        return [f.name for f in dataclasses.fields(thing) if f.init and not f.name.startswith("_")]
    if not inspect.isclass(thing):
        return list(inspect.signature(thing).parameters)
    if getattr(thing, "_is_protocol", False) and "__call__" in vars(thing):
        return list(inspect.signature(vars(thing)["__call__"]).parameters)[1:]
    return list(getattr(thing, "_fields", ()))


@pytest.mark.parametrize("room", OFFERED)
def test_every_argument_is_told(room):
    module, silent = importlib.import_module(room), {}
    for name in set(OFFERED[room].split()) - {"__version__", "systems"}:
        doc = inspect.getdoc(getattr(module, name)) or ""
        lines = re.findall(r"^    ([*\w, ]+): \S", doc, re.MULTILINE)
        told = {word.strip(" *") for line in lines for word in line.split(",")}
        untold = set(arguments(getattr(module, name))) - told
        if untold or not doc:
            silent[name] = untold
    assert not silent


def test_the_package_itself_imports_nothing():
    heavy = "import sys, vljax; print([m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True).strip() == "[]"


def test_the_doors_have_commands():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    doors = {"train", "generate", "evaluate", "export", "page"}
    assert {f"vljax-{name}" for name in doors} <= set(told)
    for command, place in told.items():
        module, _, function = place.partition(":")
        assert module.removesuffix(".__main__") == command.replace("-", ".")
        assert callable(getattr(importlib.import_module(module), function))


# What an extra's packages are called when they are imported, where not as when they are installed.
IMPORTED = {"rouge-score": "rouge_score"}


def test_what_an_extra_brings_is_asked_for_by_its_name(monkeypatch):
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    brings = {
        extra: {IMPORTED.get(name, name) for name in re.findall(r"^[\w-]+", "\n".join(some), re.M)}
        for extra, some in told["optional-dependencies"].items()
        if extra not in ("cuda", "tpu", "test")
    }
    asked = set()
    for file in (ROOT / "vljax").rglob("*.py"):
        text = file.read_text("utf-8")
        asked |= set(re.findall(r'of_extra\(\s*"(\w+)", "([\w.]+)"', text))
        if "page" not in file.parts:
            at_once = set(re.findall(r"^(?:import|from) (\w+)", text, re.M))
            assert not at_once & set().union(*brings.values()), f"{file} imports what may be absent"
    assert {extra for extra, _ in asked} == {"coco", "dialogues", "lsun", "tables"}
    for extra, module in asked:
        package = module.partition(".")[0]
        assert package in brings[extra]
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"this takes the package {package}: .*\[{extra}\]"):
            of_extra(extra, module, "this")
