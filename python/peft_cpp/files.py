"""The verbs of the command line on files.

Keyword arguments are the flags of ``peft VERB --help``: ``--dry-run`` is ``dry_run=True``, ``--no-sync`` is
``sync=False``. Paths may be ``str``, ``bytes`` or ``os.PathLike``; ``org/name`` is looked up in the local Hugging Face
cache, and fetched only with ``download=True``. What a function cannot do right is an :class:`peft_cpp.Error`; warnings
go through :mod:`warnings` as :class:`peft_cpp.LoraWarning`. The GIL is released while work runs, several threads may
call at once, and Ctrl-C leaves nothing behind.
"""
from __future__ import annotations

import os
import warnings

from . import _core
from .errors import LoraWarning
from .progress import shown
from .reports import (ConvertReport, DoctorReport, InspectReport, LowRankReport, MergeReport, TargetsReport, VerifyMergedReport,
                      VerifyReport)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Literal, Union

    from .progress import Progress

    Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]
    Weighted = Union[Path, tuple[Path, float]]
    Two = Union[str, None, Sequence[Union[str, None]]]

__all__ = ["combine", "convert", "doctor", "extract", "inspect", "merge", "resize", "targets", "verify", "verify_merged"]


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        warnings.warn(text, LoraWarning, stacklevel=4)


def _local(path: Any, download: bool) -> Any:
    if not download:
        return path
    from .hub import local

    return local(path, download)


def _weighted(adapter: Weighted, download: bool) -> Any:
    """DIR@WEIGHT, as the command line takes it."""
    if isinstance(adapter, tuple):
        path, weight = adapter
        return f"{os.fsdecode(_local(path, download))}@{float(weight)!r}"
    return _local(adapter, download)


def _weighted_list(adapters: Any, download: bool) -> list[Any]:
    alone = isinstance(adapters, (str, bytes)) or hasattr(adapters, "__fspath__")
    return [_weighted(adapter, download) for adapter in ([adapters] if alone else adapters)]


def _call(verb: str, values: dict[str, Any], progress: Progress = None) -> dict[str, Any]:
    with shown(progress, verb) as callback:
        result: dict[str, Any] = getattr(_core, verb)(values, callback)
    _warn(result.get("warnings", []) if verb != "inspect" else [])
    return result


def inspect(path: Path, *, base: Path | None = None, family: str | None = None, families: Path | None = None,
            num_experts: int | None = None, adapter_name: str | None = None, from_: str | None = None,
            orientation: str | None = None, b_packing: str | None = None, ignore_unused: bool = False,
            allow_trailing_bytes: bool = False, follow_symlinks: bool = False, max_tensors: int | None = None,
            download: bool = False) -> InspectReport:
    """Says what an adapter is: layout, producer, ranks, and which programs read it right.

    Args:
        path: The adapter's folder, or ``org/name`` in the local Hugging Face cache.
        base: The model's folder, its config.json, or a module-tree file: names and shapes are checked against it.
        family: The model_type, where no base is given.
        families: A file of further families, in the form of data/families.json.
        num_experts: Experts per layer, where neither file nor base says it.
        adapter_name: The adapter in this subfolder of the folder.
        from_: The layout of the file; found out when not given.
        orientation: "out-in" or "in-out", where a file leaves it open.
        b_packing: "rank-major" or "grouped-by-expert", where a file leaves it open.
        ignore_unused: Go on without tensors that belong to nothing.
        allow_trailing_bytes: Accept bytes after the last tensor.
        follow_symlinks: Accept shards that are links out of the model's folder.
        max_tensors: Refuse files with more tensors.
        download: Fetch ``org/name`` from the hub when it is not in the cache (needs huggingface_hub).

    Returns:
        A report. Where the file opens and cannot be decoded, ``report.error`` says why, and the report is false.

    Raises:
        FileError: The path cannot be read.
        FileFormatError: The file is not a safetensors file, or a damaged one.
        ConfigError: adapter_config.json is wrong.
    """
    return InspectReport(_call("inspect", dict(
        path=_local(path, download), base=_local(base, download), family=family, families=families,
        num_experts=num_experts, adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors)))


def targets(path: Path, *, base: Path, generation: Literal["v4", "v5"] | None = None, as_of: str | None = None,
            families: Path | None = None, download: bool = False) -> TargetsReport:
    """Lists what a config puts LoRA on: modules, parameters, ranks, shapes.

    Args:
        path: An adapter folder, or an adapter_config.json.
        base: The model's folder, its config.json, or a module-tree file.
        generation: Module names of transformers 4 or 5; what base and config suggest when not given.
        as_of: By the rules of this PEFT version, such as "0.18.1"; the newest known when not given.
        families: A file of further families, in the form of data/families.json.
        download: Fetch hub names that are not in the cache.

    Returns:
        The targets, with the shapes of lora_A and lora_B, and the config that PEFT would save.

    Raises:
        MissingNameError: The targets match nothing, or something LoRA cannot sit on.
        ConfigError: The config is wrong.
        ModelError: The model is not known.
    """
    return TargetsReport(_call("targets", dict(
        path=_local(path, download), base=_local(base, download), generation=generation, as_of=as_of,
        families=families)))


def convert(adapter: Path, *, to: str | None = None, for_: str | None = None, out: Path | None = None,
            dtype: str | None = None, gguf_base: Path | None = None, block_diagonal: bool = False, dry_run: bool = False,
            config_only: bool = False, overwrite: bool = False, threads: int | None = None, sync: bool = True,
            readback: bool = True, base: Path | None = None, family: str | None = None,
            families: Path | None = None, num_experts: int | None = None, adapter_name: str | None = None,
            from_: str | None = None, orientation: str | None = None, b_packing: str | None = None,
            ignore_unused: bool = False, allow_trailing_bytes: bool = False, follow_symlinks: bool = False,
            max_tensors: int | None = None, download: bool = False, progress: Progress = None) -> ConvertReport:
    """Writes an adapter in another layout. The folder appears complete and checked, or not at all.

    Args:
        adapter: The adapter's folder; with config_only a config or a folder.
        to: The layout to write: one of :func:`peft_cpp.layouts`. Either this or for_ is needed.
        for_: The engine that shall read it, such as "vllm" or "peft@0.20" (``peft engines``): its best layout is chosen.
        out: The folder to write, or the file of to="gguf". Needed unless dry_run or config_only.
        dtype: Cast the factors: "F32", "F16", "BF16" or "F64"; of to="gguf" also "Q8_0".
        gguf_base: to="gguf": the model's GGUF file, whose names and shapes the adapter gets.
        block_diagonal: Keep gate and up apart (rank 2r) even where they share lora_A.
        dry_run: Plan and check everything; write nothing.
        config_only: Convert adapter_config.json alone; needs base.
        overwrite: Replace an output folder that exists, in one step.
        threads: All cores when not given. The bytes do not depend on it.
        sync: Wait until the disk has the data.
        readback: Read the written files back and compare them.
        base, family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: How to read the
            adapter, as for :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.
        progress: True for a bar, or a function of (done, total) bytes. An exception of it stops the run.

    Returns:
        What was written, and how exact it is; with dry_run the plan.

    Raises:
        AdapterError: The tensors do not fit, or have no form in the target layout.
        UsageError: An argument makes no sense, or a fact about the model is needed.
        OutputExistsError: The folder exists.
        FileError: A file cannot be read or written.
    """
    return ConvertReport(_call("convert", dict(
        adapter=_local(adapter, download), to=to, for_=for_, out=out, dtype=dtype, gguf_base=gguf_base,
        block_diagonal=block_diagonal, dry_run=dry_run, config_only=config_only, overwrite=overwrite, threads=threads, sync=sync, readback=readback,
        base=_local(base, download), family=family, families=families, num_experts=num_experts,
        adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors), progress))


def doctor(adapter: Path, *, for_: str | None = None, base: Path | None = None, family: str | None = None,
           families: Path | None = None, num_experts: int | None = None, adapter_name: str | None = None,
           from_: str | None = None, orientation: str | None = None, b_packing: str | None = None,
           ignore_unused: bool = False, allow_trailing_bytes: bool = False, follow_symlinks: bool = False,
           max_tensors: int | None = None, download: bool = False) -> DoctorReport:
    """Says whether an adapter will work where it shall run, and what mends it.

    Args:
        adapter: The adapter's folder.
        for_: The engine, with a version if need be: "vllm", "peft@0.20"; all engines when not given.
        base, family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: As for
            :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.

    Returns:
        A report that is true when the engine takes all of the adapter; else ``engines[0].mend`` is a command that helps.

    Raises:
        UsageError: There is no such engine.
        FileError, FileFormatError, ConfigError: As for :func:`inspect`.
    """
    return DoctorReport(_call("doctor", dict(
        adapter=_local(adapter, download), for_=for_, base=_local(base, download), family=family, families=families,
        num_experts=num_experts, adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors)))


def verify(a: Path, b: Path, *, tolerance: Literal["exact", "rounded"] = "rounded", threads: int | None = None,
           base: Path | None = None, family: str | None = None, families: Path | None = None,
           num_experts: int | None = None, adapter_name: Two = None, from_: Two = None, orientation: Two = None,
           b_packing: Two = None, ignore_unused: bool = False, allow_trailing_bytes: bool = False,
           follow_symlinks: bool = False, max_tensors: int | None = None, download: bool = False) -> VerifyReport:
    """Says whether two adapters are the same function, whatever their layouts.

    Args:
        a: An adapter's folder.
        b: The other one's.
        tolerance: "exact" for equal numbers, "rounded" for equal up to rounding.
        threads: All cores when not given.
        adapter_name, from_, orientation, b_packing: As for :func:`inspect`; one value for both adapters, or a pair, in
            which None stands for "not given".
        base, family, families, num_experts, ignore_unused: As for :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.

    Returns:
        A report that is true when they are the same; else ``differences`` says where.

    Raises:
        AdapterError: One of them cannot be decoded.
        FileError: One of them cannot be read.
    """
    report = _call("verify", dict(
        adapters=[_local(a, download), _local(b, download)], tolerance=tolerance, threads=threads,
        base=_local(base, download), family=family, families=families, num_experts=num_experts,
        adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors))
    _warn_left_out(report)
    return VerifyReport(report)


def _warn_left_out(report: dict[str, Any]) -> None:
    for text in report["left_out"]:
        warnings.warn(f"left out of the comparison: {text}", LoraWarning, stacklevel=3)


def verify_merged(merged: Path, adapters: Weighted | Sequence[Weighted], *, base: Path, base_is_residual: bool = False,
                  threads: int | None = None, family: str | None = None, families: Path | None = None,
                  num_experts: int | None = None, adapter_name: str | None = None, from_: str | None = None,
                  orientation: str | None = None, b_packing: str | None = None, ignore_unused: bool = False,
                  allow_trailing_bytes: bool = False, follow_symlinks: bool = False, max_tensors: int | None = None,
                  download: bool = False) -> VerifyMergedReport:
    """Says whether a model is its base with adapters merged, tensor by tensor, whoever merged it.

    Args:
        merged: The model in question.
        adapters: The adapters that it should hold: paths, "DIR@WEIGHT", or (path, weight).
        base: The base model's folder.
        base_is_residual: The base is the one that PiSSA, OLoRA, CorDA or LoftQ left behind.
        threads: All cores when not given.
        family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: As for :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.

    Returns:
        A report that is true when every tensor is what it should be.

    Raises:
        AdapterError: An adapter cannot be decoded, or does not fit the base.
        FileError: A file cannot be read.
    """
    report = _call("verify", dict(
        adapters=_weighted_list(adapters, download), merged=_local(merged, download), base=_local(base, download),
        base_is_residual=base_is_residual, threads=threads, family=family, families=families, num_experts=num_experts,
        adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors))
    _warn_left_out(report)
    return VerifyMergedReport(report)


def merge(adapters: Weighted | Sequence[Weighted], *, base: Path, out: Path | None = None,
          mode: Literal["best", "peft", "peft-safe", "fast"] = "best", base_dtype: str | None = None,
          out_dtype: str | None = None, keep_quantized: bool = False, base_is_residual: bool = False,
          allow_repeat: bool = False, max_shard_size: str | int | None = None, report: Path | None = None,
          dry_run: bool = False, resume: bool = False, trust_journal: bool = False, part: str | None = None,
          finish: bool = False, overwrite: bool = False, threads: int | None = None, sync: bool = True,
          readback: bool = True, family: str | None = None, families: Path | None = None,
          num_experts: int | None = None, adapter_name: str | None = None, from_: str | None = None,
          orientation: str | None = None, b_packing: str | None = None, ignore_unused: bool = False,
          allow_trailing_bytes: bool = False, follow_symlinks: bool = False, max_tensors: int | None = None,
          download: bool = False, progress: Progress = None) -> MergeReport:
    """Adds adapters to a model on disk and writes the model, in memory that does not grow with it.

    Args:
        adapters: What to add, in this order: paths, "DIR@WEIGHT", or (path, weight).
        base: The base model's folder.
        out: The folder to write. Needed unless dry_run.
        mode: How it rounds: once ("best"), as PEFT's merge_and_unload ("peft") or with safe_merge ("peft-safe"), or the
            quickest way, its error measured ("fast").
        base_dtype: Cast the base first, as loading it with this dtype does.
        out_dtype: Round the result to this; the base's own when not given.
        keep_quantized: Leave quantised tensors as they are where no adapter changes them.
        base_is_residual: The base is what PiSSA, OLoRA, CorDA or LoftQ left of the original model.
        allow_repeat: Add an adapter that the base already holds.
        max_shard_size: New shards of at most this, such as "5GB"; the base's own shards when not given.
        report: Write a page (HTML) that says what changed where.
        dry_run: Plan and check everything; write nothing.
        resume: Go on where a run was stopped.
        trust_journal: Compare sizes and headers of finished files, not their contents.
        part: "I/N": write only this part of the files; the parts may run at once.
        finish: Check that all parts are there, and make the output of them.
        overwrite, threads, sync, readback, progress: As for :func:`convert`.
        family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: As for :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.

    Returns:
        What became of each matrix, with norms; with dry_run the plan.

    Raises:
        AdapterError: An adapter does not fit the base, or the base holds it already.
        UsageError, OutputExistsError, FileError: As for :func:`convert`.
    """
    size = str(max_shard_size) if isinstance(max_shard_size, int) else max_shard_size
    return MergeReport(_call("merge", dict(
        adapters=_weighted_list(adapters, download), base=_local(base, download), out=out, mode=mode,
        base_dtype=base_dtype, out_dtype=out_dtype, keep_quantized=keep_quantized, base_is_residual=base_is_residual,
        allow_repeat=allow_repeat, max_shard_size=size, report=report, dry_run=dry_run, resume=resume,
        trust_journal=trust_journal, part=part, finish=finish, overwrite=overwrite, threads=threads, sync=sync,
        readback=readback, family=family, families=families, num_experts=num_experts, adapter_name=adapter_name,
        from_=from_, orientation=orientation, b_packing=b_packing, ignore_unused=ignore_unused,
        allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks, max_tensors=max_tensors), progress))


def combine(adapters: Weighted | Sequence[Weighted], *, out: Path | None = None, type: str = "svd",
            svd_rank: int | None = None, density: float | None = None,
            majority_sign_method: Literal["total", "frequency"] = "total", seed: int = 0, to: str | None = None,
            dtype: str | None = None, dry_run: bool = False, overwrite: bool = False, threads: int | None = None,
            sync: bool = True, readback: bool = True, base: Path | None = None, family: str | None = None,
            families: Path | None = None, num_experts: int | None = None, adapter_name: str | None = None,
            from_: str | None = None, orientation: str | None = None, b_packing: str | None = None,
            ignore_unused: bool = False, allow_trailing_bytes: bool = False, follow_symlinks: bool = False,
            max_tensors: int | None = None, download: bool = False, progress: Progress = None) -> LowRankReport:
    """Makes one adapter of several, each with a weight.

    Args:
        adapters: Paths, "DIR@WEIGHT", or (path, weight).
        out: The folder to write. Needed unless dry_run.
        type: "linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", or the last four with _svd.
        svd_rank: Types that end in svd: the new rank; the largest one of the adapters when not given.
        density: ties, dare, magnitude_prune: the part of the elements that is kept.
        majority_sign_method: ties: the sign of the sum, or the sign that most have.
        seed: dare: which elements are dropped.
        to: The layout to write; the first adapter's when not given.
        dtype: The dtype to write; F32 when not given.
        dry_run: Compute the errors; write nothing.
        overwrite, threads, sync, readback, progress: As for :func:`convert`.
        base, family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: As for
            :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.

    Returns:
        The matrices that were made and their errors, as parts of the norm of what was asked for.

    Raises:
        AdapterError: The adapters do not fit each other.
        UsageError, OutputExistsError, FileError: As for :func:`convert`.
    """
    return LowRankReport(_call("combine", dict(
        adapters=_weighted_list(adapters, download), out=out, type=type, svd_rank=svd_rank, density=density,
        majority_sign_method=majority_sign_method, seed=seed, to=to, dtype=dtype, dry_run=dry_run, overwrite=overwrite,
        threads=threads, sync=sync, readback=readback, base=_local(base, download), family=family, families=families,
        num_experts=num_experts, adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors), progress))


def resize(adapter: Path, *, rank: int, out: Path | None = None, to: str | None = None, dtype: str | None = None,
           dry_run: bool = False, overwrite: bool = False, threads: int | None = None, sync: bool = True,
           readback: bool = True, base: Path | None = None, family: str | None = None, families: Path | None = None,
           num_experts: int | None = None, adapter_name: str | None = None, from_: str | None = None,
           orientation: str | None = None, b_packing: str | None = None, ignore_unused: bool = False,
           allow_trailing_bytes: bool = False, follow_symlinks: bool = False, max_tensors: int | None = None,
           download: bool = False, progress: Progress = None) -> LowRankReport:
    """Writes an adapter at a lower rank, and says what that costs.

    Args:
        adapter: The adapter's folder.
        rank: The new rank.
        out: The folder to write. Needed unless dry_run.
        to: The layout to write; the adapter's own when not given.
        dtype: The dtype to write; F32 when not given.
        dry_run: Compute the errors; write nothing.
        overwrite, threads, sync, readback, progress: As for :func:`convert`.
        base, family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: As for
            :func:`inspect`.
        allow_trailing_bytes, follow_symlinks, max_tensors, download: As for :func:`inspect`.

    Returns:
        The matrices that were made and their errors, as parts of the norm of what was asked for.

    Raises:
        AdapterError: The adapter cannot be decoded.
        UsageError, OutputExistsError, FileError: As for :func:`convert`.
    """
    return LowRankReport(_call("resize", dict(
        adapter=_local(adapter, download), rank=rank, out=out, to=to, dtype=dtype, dry_run=dry_run, overwrite=overwrite,
        threads=threads, sync=sync, readback=readback, base=_local(base, download), family=family, families=families,
        num_experts=num_experts, adapter_name=adapter_name, from_=from_, orientation=orientation, b_packing=b_packing,
        ignore_unused=ignore_unused, allow_trailing_bytes=allow_trailing_bytes, follow_symlinks=follow_symlinks,
        max_tensors=max_tensors), progress))


def extract(*, base: Path, finetuned: Path, rank: int, out: Path | None = None, to: str | None = None,
            dtype: str | None = None, modules_to_save: Sequence[str] = (), ignore_unused: bool = False,
            family: str | None = None, families: Path | None = None, follow_symlinks: bool = False,
            dry_run: bool = False, overwrite: bool = False, threads: int | None = None, sync: bool = True,
            readback: bool = True, download: bool = False, progress: Progress = None) -> LowRankReport:
    """Recovers an adapter from a model and its fine-tuned form.

    Args:
        base: The base model's folder.
        finetuned: The fine-tuned or merged model's folder.
        rank: The largest rank to keep.
        out: The folder to write. Needed unless dry_run.
        to: The layout to write.
        dtype: The dtype to write; F32 when not given.
        modules_to_save: Carry these modules whole where they changed: the end of a name, such as "norm".
        ignore_unused: Go on where something changed that LoRA cannot hold.
        family, families: As for :func:`inspect`.
        follow_symlinks: Accept shards that are links out of the model's folder.
        dry_run: Compute the errors; write nothing.
        overwrite, threads, sync, readback, progress, download: As for :func:`convert`.

    Returns:
        The matrices that were made and their errors, as parts of the norm of what was asked for.

    Raises:
        AdapterError: Something changed that LoRA cannot hold.
        UsageError, OutputExistsError, FileError: As for :func:`convert`.
    """
    return LowRankReport(_call("extract", dict(
        base=_local(base, download), finetuned=_local(finetuned, download), rank=rank, out=out, to=to, dtype=dtype,
        modules_to_save=list(modules_to_save), ignore_unused=ignore_unused, family=family, families=families,
        follow_symlinks=follow_symlinks, dry_run=dry_run, overwrite=overwrite, threads=threads, sync=sync,
        readback=readback), progress))
