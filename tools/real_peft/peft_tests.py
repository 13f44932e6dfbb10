#!/usr/bin/env python3
"""Writes docs/notes/peft_tests.md: PEFT's tests that concern LoRA, one line each, and what covers them here.

    pip download --no-deps --no-binary :all: peft==0.21.2 && tar xf peft-0.21.2.tar.gz
    tools/real_peft/peft_tests.py peft-0.21.2/tests > docs/notes/peft_tests.md

Names come from the files, so none is overlooked; a name without a row below, or a row that names a test of ours that
does not exist, is an error.
"""

import ast
import pathlib
import re
import sys

FILES = """test_target_parameters test_custom_models test_decoder_models test_initialization test_trainable_tokens
test_seq_classifier test_token_classification_qa test_lora_variants test_encoder_decoder_models test_mixed
test_tuners_utils test_low_level_api test_config testing_common""".split()

ROOT = pathlib.Path(__file__).resolve().parents[2]

METHOD = "-: another method"
PYTHON = "-: Python's API only"
TRAIN = "-: training comes later"
QUANT = "-: quantised bases in the runtime come later"
CONV = "-: convolutions do not run here (the core merges them: merge_convolutions_test MergeConvolutions.KernelsOfAnyDimension)"
MHA = "-: nn.MultiheadAttention is in no model that runs here"
REFUSED = "-: not implemented, and refused by name: lora_test LoraApi.WhatIsNotImplementedIsRefusedByName"
ONE_BY_ONE = "-: layers cannot be enabled, activated or merged one by one here"
TOKENS = "parity_test Embeddings.ATokenHasOneRow, Embeddings.MergingByNameTakesTheRows, Embeddings.TokensOfEitherEmbeddingMerge"
SCALED = "-: models that scale their embeddings (Gemma) do not run here yet"
LATER = "-: not implemented, see docs/runtime.md: "
RESOLVE = "golden_test config/resolve"
ROUND = "lora_golden_test LoraRuntime.SavesLoadsDisablesMergesAndTakesOut"
STATUS = "status_test Status.IsThatOfPeftAfterEveryStep"
API = "lora_test LoraApi."
PARITY = "peft_parity_test Parity."
OPEN = "open: "

# The first row whose pattern is found in "file Class.test" counts.
ROWS = [
    # ---- other methods, and parts of PEFT that have no counterpart here
    (r"ia3|adalora|loha|lokr|_oft_|_hra_|Hra|_miss_|Miss|boft|lntuning|vera\b|vera_|Vera|pvera|randlora|vblora|fourierft"
     r"|glora|gralora|monteclora|velora|Velora|prompt|prefix_tuning|adaption|test_default_target_modules_osf|unilora"
     r"|TestShadow|AdaLora|Adamss|Frod|VBLora|C3A|WaveFT|RoadInit|DeLoRA|GraLoRA|Psoft|Peanut|Beft|Supertuning|Hira"
     r"|TinyLora|Lily|_lily|inject_adapter_in_model_rejects_shared|stand_alone|standalone|test_mixed ", METHOD),
    (r"[Kk]asa|mica|bdlora|ActivatedLora|[Cc]orda", REFUSED),
    (r"Eva", REFUSED),
    (r"embed_scale|scaled_embedding", SCALED),
    (r"sibling", "-: no model type that runs here has modules beside the embeddings whose names begin like theirs"),
    (r"TestWeightTying", LATER + "ensure_weight_tying (refused by name)"),
    (r"unsupported_layer_raises", PARITY + "AReplacedNormIsNotMixed"),
    (r"save_disabling", "-: differs on purpose: gradients stay as they are while adapters are disabled (docs/runtime.md)"),
    (r"exiting_context_irregular|TestModelAndLayerStatus.*enabled_irregular", ONE_BY_ONE),
    (r"find_minimal.*raises", "-: Python's API only (an internal function)"),
    (r"multiple_adapters_different_token|multiple_trainable_token|safe_merge_with_adapter|excludes_trainable_tokens|tied_layer_explicitly", TOKENS),
    (r"Hotswap|compiled_hotswap|HotSwapping", LATER + "exchange of an adapter in place; delete_adapter and load_adapter instead"),
    (r"bnb|quantization_backend", QUANT),
    (r"[Ff]sdp|[Dd]eepspeed|megatron", PYTHON + " (distributed training)"),
    (r"mha|multihead", MHA),
    (r"conv", CONV),
    (r"layer_replication", REFUSED),
    (r"diffusion", "-: diffusion models do not run here"),
    (r"model_card|test_existing|non_existing", "save_test Saving.TheCardSaysWhoseAdapterItIs, Saving.WhatElseLiesInTheFolderStays"),
    (r"low_cpu_mem_usage|autocast|OfflineMode|cache_dir|pickle|DynamicDispatch|TestLayerRepr|compiled|NamingConflict"
     r"|CustomModelConfigWarning|prepare_for_training|test_attributes|_test_model_attr|no_needless_copy|weight_bias_attributes"
     r"|in_features_out_features|opt_timing|GetModelConfig|test_methods|test_config_copy|deepcopy|runtime_config|from_peft_type"
     r"|model_with_injected|vanilla_model|transformer_model_without|mixed_model_raises|inject_adapter_in_model|ensure_no|"
     r"config_construction|pos_args|dev_version|commit_hash|nemotron_h_has_defaults|key_mapping|save_shared_tensors|"
     r"TestInjectAdapterFromStateDict|unregistered_variant|unsorted_variant|multiple_string_variants|existing_parametrization|"
     r"result_caching|does_not_warn_about_unknown_layer|top_level_module|_methods|set_attributes|direct_injection|GetBaseModelStateDict|"
     r"get_base_model_state_dict|preserves_input|rejects_duplicate_name_mutation|model_level_containers", PYTHON),
    (r"gradient_checkpoint", TRAIN + " (checkpointing)"),
    (r"lora_conversion", LATER + "conversion of other methods to LoRA"),
    (r"input_embeds|inputs_embeds", "-: the runtime takes ids"),
    (r"test_encoder_decoder|enc_dec|encoder_decoder", "-: encoder-decoder models do not run here; the behaviour is that of the same test of decoders"),
    (r"seq_classifier|token_classification|_seq_cls|forward_with_labels|SequenceClass|load_resized|ignore_mismatched",
     "-: models with such heads do not run here; the core carries their heads (issue 11, heads)"),

    # ---- gradients and status
    (r"requires_grad|TestRequiresGrad", STATUS + "; " + PARITY + "AddingAnAdapterLeavesTheGradientsOfOthers"),
    (r"TestModelAndLayerStatus.*irregular", STATUS + " (story: different targets; layers are not set one by one here)"),
    (r"TestModelAndLayerStatus.*gpu", "-: needs a GPU; one device for a model here"),
    (r"TestModelAndLayerStatus", STATUS),
    (r"preserves_custom|inactive_adapter", PARITY + "AddingAnAdapterLeavesTheGradientsOfOthers"),

    # ---- merging
    (r"safe_merge_does_not_mutate_base_layer_on_non_finite_bias|merge_layers_nan", PARITY + "SafeMergeLooksAtTheBiasToo"),
    (r"lora_bias_when_base_layer_has_no_bias|base_layer_has_no_bias_warns", PARITY + "ALoraBiasWithoutABiasIsWarnedOf"),
    (r"is_idempotent", PARITY + "MergingTwiceIsMergingOnce"),
    (r"deterministic_in_train_mode", "-: merging draws nothing and knows no mode"),
    (r"merge_layers_fp16|test_safe_merge$|_test_safe_merge|safe_and_unsafe_merge_agree|gpt2_dora", "lora_golden_test LoraMerge.WeightsAsPeftRoundsThem; gpt2: golden_test merge"),
    (r"merge_layers_multi|sequential_merge|active_adapters_merge_and_unmerge", PARITY + "MergingOneAfterTheOtherIsMergingBoth"),
    (r"dora_adapters_merge|active_dora|dora_and", "lora_golden_test LoraMerge.WeightsAsPeftRoundsThem (llama-two-dora)"),
    (r"dora_unmerge_inverts", API + "MergingIsTakenBackBitForBit (a copy is given back, whatever was merged)"),
    (r"fixes_tie_word|tie_word|TiedEmbeddings|tied_embeddings", "parity_test Embeddings.MergingOnOneOfTwoTiedEmbeddingsUntiesThem, Embeddings.ASavedTiedEmbeddingMergesToo; the core: merge_embeddings_test MergeTied.LoraOnBothGivesTwoTensors"),
    (r"trainable_tokens_random_init", "-: init_weights=false of trainable tokens does not exist here"),
    (r"merge_layers|merge_and_unload|delete_merged_adapter", ROUND + "; " + PARITY + "UnknownAndMergedAdaptersAreNotDeleted"),

    # ---- several adapters, disabling, deleting
    (r"disable_adapter_with_bias_warns", ROUND + " (biases belong to the adapter here, so there is nothing to warn of)"),
    (r"adapters_exiting|reentrant|disable", PARITY + "GuardsNestAndTakeOutWhatIsMergedBelowThem, Parity.AGuardLeavesAnUnloadedBaseAlone"),
    (r"bias_raises|configs_with_bias", PARITY + "OnlyOneAdapterTrainsBiases"),
    (r"mixed_adapter_batches.*(raises|disabled)|MixedAdapterBatches.*(raises|disabled)", PARITY + "MixedBatchesAreRefusedWherePeftRefusesThem (DoRA and dropout are mixed here)"),
    (r"generate_with_mixed", PARITY + "AMixedBatchGeneratesWhatEachWouldAlone (beams do not exist here)"),
    (r"[Mm]ixed_?[Aa]dapter_?[Bb]atches|scaled_mixed_batch|applied_mixed_batch|adapters_mixed_forward", "lora_golden_test LoraRuntime.MixedBatch; " + API + "AdaptersAreAddedChosenAndDeleted"),
    (r"same_modules_to_save_raises|overlapping_modules_to_save_raises|different_modules_to_save_works|multiple_adapters_with_modules_to_save"
     r"|delete_adapter_multiple|multiple_adapters_automatic", PARITY + "TwoAdaptersThatReplaceOneTensorAreNotActiveTogether"),
    (r"modules_to_save_merging|negative_weight|subtraction", PARITY + "ANegativeWeightNegates; replaced modules: low_rank_test Combine.what_has_no_sum_or_makes_no_sense_is_refused_with_a_reason"),
    (r"add_weighted|weighted_combination", "lora_golden_test LoraWeighted.RightDelta; low_rank_test Combine.operators_are_those_of_peft"),
    (r"unknown_adapter|delete_unknown", PARITY + "UnknownAndMergedAdaptersAreNotDeleted"),
    (r"rejects_duplicate_name", API + "OneClearErrorForEachBadInput"),
    (r"delete_adapter", API + "AdaptersAreAddedChosenAndDeleted; " + STATUS),
    (r"trainable_token_indices_raises|different_trainable_token|overlapping_token|disjunct_token|with_same_trainable",
     TOKENS),
    (r"set_adapter_non_overlapping|mixed_modules_to_save|active_adapter$|test_active_adapter", STATUS + " (story: different targets)"),
    (r"multiple_active_adapters_forward|TestMultipleActiveAdapters", API + "AdaptersAreAddedChosenAndDeleted"),
    (r"unload", PARITY + "AGuardLeavesAnUnloadedBaseAlone; " + API + "TheBaseIsLeftAsItWas"),
    (r"load_multiple_adapters|multiple_adapters_with_same_target_parameters|load_order|loading_multiple_adapters|reuses_param_wrapper",
     API + "SeveralAdaptersAreSavedSideBySide; " + STATUS + " (story: loaded)"),
    (r"different_target_parameters_raises", "-: PEFT refuses it, here it is allowed (docs/runtime.md)"),

    # ---- targets
    (r"target_module_and_target_parameter_on_same_layer", PARITY + "AModuleAndItsParameterAreNotTargetsTogether; golden_test config/resolve/params_clash"),
    (r"param_equivalent", PARITY + "AModuleAndItsParameterAreTheSameUpdate"),
    (r"TestRankAndAlphaPattern|rank_alpha_pattern|multirank|MultiRank|scaling|Scaling|rank_pattern_for_moe", RESOLVE + " (rank_*, suffix_*); lora_golden_test LoraNative.LogitsAndCounts"),
    (r"set_scale|unscale", LATER + "set_scale"),
    (r"TestFindMinimal|find_target|suffix_is_substring|minimal", "targets_test Minimise.KeepsWhatMustBeToldApart; golden_test config/resolve (minimise_*)"),
    (r"TestExcludedModule|exclude", RESOLVE + " (exclude_*)"),
    (r"all_linear|all-linear|include_all", RESOLVE + " (all_linear, gpt2_all_linear); real_values_test NamesOfTransformers4.BecomeParametersAsInPeft"),
    (r"targeted_modules|targeted_module|TargetedParameter|targeted_parameter|regex|layers_to_transform|layer_indexing|module_matching|realistic", RESOLVE + " (regex_*, layers_*, exact*)"),
    (r"DefaultTargetModules|default_target", RESOLVE + " (null_unknown_type, gpt2_default)"),
    (r"pattern_key|pattern_keys|unmatched|misconfigured_second", "targets_test ResolveTargets.WarnsAboutWhatMatchesNothing"),
    (r"no_target_module_nor|target_parameters_wrong_type|invalid_target|target_multiple_parameters", RESOLVE + " (params_*)"),
    (r"no_matching|no_modules_matched|second_adapter_only|unique_across", RESOLVE + " (save_only, exclude_all)"),
    (r"mamba", "-: Mamba layers do not run here; the resolver refuses such targets, as PEFT does"),
    (r"modules_to_save_targets_lora|token_indices_targets_lora", "golden_test config/resolve/save_and_target; tokens: parity_test Embeddings.TokensAndLoraOnOneEmbeddingAreRefused"),

    # ---- initialisation
    (r"init_orthogonal_odd", PARITY + "AnOddRankHasNoOrthogonalStart; golden_test config/resolve/orthogonal_odd"),
    (r"(pissa|olora).*(rslora_raises)", "-: PEFT refuses patterns with rsLoRA here, ours saves them right: " + API + "AChangedBaseIsTakenOutOnSaving"),
    (r"(pissa|olora)_conversion", API + "AChangedBaseIsTakenOutOnSaving"),
    (r"(pissa|olora).*warns", API + "AChangedBaseIsAskedAbout (an error until it is answered)"),
    (r"embedding_(default|gaussian|false)", API + "EmbeddingsStartAsTheBase"),
    (r"linear_init|linear_false|init_orthogonal|init_default|init_gaussian", API + "NewAdapterStartsAsTheBase"),
    (r"use_dora_linear|dora_params_have|variant_is_applied|dora_save_and_load", ROUND + " (cases with DoRA); lora_golden_test LoraNative.LogitsAndCounts (llama-dora)"),
    (r"invalid_variant_combination", "config_test AdapterConfig.RefusesWhatPeftRefuses (dora_bias)"),
    (r"lora_with_bias_embedding_raises|bias_incompatible|lora_with_bias", "config_test AdapterConfig.RefusesWhatPeftRefuses (lora_bias_gaussian); " + PARITY + "SafeMergeLooksAtTheBiasToo"),
    (r"missing_keys_warning", API + "AMissingTargetIsNamed (an error here)"),
    (r"strict_missing|strict_unexpected", API + "OneClearErrorForEachBadInput"),
    (r"not_divisible_by_groups", CONV),

    # ---- trainable tokens, tied weights
    (r"ensure_weight_tying|TestWeightTying|weight_tying_bc|weight_tying_enc", LATER + "ensure_weight_tying (refused by name)"),
    (r"test_trainable_tokens .*(training|gradients)", "lora_golden_test LoraGradients.OfTheFirstBatch"),
    (r"weight_tying|tied", "status_test Status.IsThatOfPeftAfterEveryStep (story: tied tokens); lora_golden_test LoraNative.LogitsAndCounts"),
    (r"head_and_embedding|both_embedding", TOKENS),
    (r"cannot_be_inferred|default_embedding|embedding_name|composite_model|layer_not_found|multiple_targets",
     "parity_test Embeddings.MergingByNameTakesTheRows, Embeddings.TokensNeedAnEmbeddingOfThatName; the list form: lora_test LoraApi.WholeModulesBiasesAndTokens"),
    (r"test_trainable_tokens", API + "WholeModulesBiasesAndTokens; lora_golden_test LoraNative.LogitsAndCounts (token_indices)"),

    # ---- saving, loading, running
    (r"selected_adapters", "save_test Saving.SeveralAdaptersHaveOneCard"),
    (r"adapter_name|names?_in_module_name|name_same_as|removes_|normal_names|prefix_in_module_name|module_named_like|Prefixes|state_dict_key",
     PARITY + "AnAdaptersNameMakesNoDifference; " + API + "TheFileIsTheEncoders"),
    (r"embedding_layer|save_embedding|save_pretrained_auto|no_embeddings_in_save", "lora_golden_test LoraNative.LogitsAndCounts (llama-embedding, embed_saved)"),
    (r"only_params_are_updated", PARITY + "OnlyTheAdapterIsUpdated"),
    (r"test_generate_half|generate_half", "-: the tokens of half precision depend on the kernels; logits are compared: lora_golden_test LoraRuntime.BFloat16"),
    (r"generate", "runtime_verbs_test Generate.gives_the_tokens_of_transformers"),
    (r"float16|bfloat16|fp16", "lora_golden_test LoraRuntime.BFloat16"),
    (r"training|finite$", "lora_golden_test LoraGradients.OfTheFirstBatch (one step; training comes later)"),
    (r"device_map", "lora_test LoraApi on a GPU: ctest nn_on_cuda; several devices come later"),
    (r"modules_to_save", API + "WholeModulesBiasesAndTokens"),
    (r"test_config .*", "config_test AdapterConfig.ReadsEveryField, AdapterConfig.IsWrittenBackAsPeftWroteIt, AdapterConfig.BadValuesNameKeyAndValue"),
    (r"save|load|roundtrip|state_dict|safetensors|parameters_after_loading|forward_output", ROUND),
    (r"forward_under", PYTHON),
]


def tests_of(path, common):
    tree = ast.parse(path.read_text())
    for owner in [tree] + [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and re.match("_?test_" if common else "test_", node.name):
                yield getattr(owner, "name", ""), node.name


def own_tests():
    known = set()
    for path in list(ROOT.glob("src/**/*_test.cpp")) + list(ROOT.glob("tests/**/*_test.cpp")):
        for suite, name in re.findall(r"^TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", path.read_text(), re.M):
            known.add((path.stem, f"{suite}.{name}"))
    return known


def check(answer, known):
    stem = None
    for word in re.findall(r"\w+_test\b|\b[A-Z]\w+\.\w+", answer):
        if word.endswith("_test"):
            stem = word
        elif stem and (stem, word) not in known and not word.endswith((".md", ".cpp")):
            sys.exit(f"{answer}: {stem} has no {word}")


def main():
    folder = pathlib.Path(sys.argv[1])
    known = own_tests()
    sections, counts, missing = [], {"covered": 0, "open": 0, "does not apply": 0}, []
    for file in FILES:
        lines = []
        for owner, name in tests_of(folder / f"{file}.py", file == "testing_common"):
            full = f"{file} {owner}.{name}"
            answer = next((text for pattern, text in ROWS if re.search(pattern, full)), None)
            if answer is None:
                missing.append(full)
                continue
            check(answer, known)
            kind = "does not apply" if answer.startswith("-: ") else "open" if answer.startswith("open") else "covered"
            counts[kind] += 1
            shown = answer.removeprefix("-: ").removeprefix(OPEN)
            lines.append(f"| {owner + '.' if owner else ''}{name} | {kind} | {shown} |")
        sections.append(f"## {file}.py: {len(lines)}\n\n| test | | here |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    if missing:
        sys.exit("no row for:\n" + "\n".join(missing))
    total = sum(counts.values())
    print(f"""# PEFT's own tests and ours

The tests of PEFT 0.21.2's source distribution that concern LoRA, {total} in {len(FILES)} files; a parametrised test is one line.
Written by [tools/real_peft/peft_tests.py](../../tools/real_peft/peft_tests.py), which holds the answers and checks that the tests of ours exist.

| | |
|---|---|
""" + "\n".join(f"| {kind} | {number} |" for kind, number in counts.items()) + """

"Covered" names the file and the test of ours that look at the same behaviour; it does not say that every parameter of PEFT's test has
a counterpart. A file is in `tests/`, `tests/nn/` or beside its source in `src/`; `golden_test GROUP` is a group of the golden data.
"Open" says what is not shown here and should be.
""")
    print("\n".join(sections), end="")


if __name__ == "__main__":
    main()
