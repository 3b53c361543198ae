"""Blind image super-resolution by contrastive learning: CRL-SR (arXiv 2107.00708), readable and reproducible."""
__version__ = "0.1.0"

# Names reachable as `crlsr.NAME`, loaded on first use so that `import crlsr` stays light.
_LAZY = {"upscale": "inference", "load_model": "inference"}
_MODULES = (
    "core", "viz", "files", "folder_index", "images", "kernels", "subsampling", "kernel_shapes", "fast_blur", "noise",
    "jpeg", "fields", "spatial_blur", "steps", "spatial_steps", "params", "sources", "mixtures", "degradation", "registry",
    "leaks", "fetch", "prepare", "image_pool", "data", "blocks", "degradation_remover", "details_remover", "info_nce",
    "negatives", "other_images", "reweighting", "alignment", "contrast", "features", "refinement_negatives", "refinement",
    "saturation", "decoder", "model_config", "guidance", "paths", "model", "metrics", "inference", "recipe", "checkpoint",
    "run_folder", "signals", "distributed", "progress", "optimizer_step", "training", "estimate", "evaluation", "probes",
    "similarity", "removal", "battery", "comparison", "diagnostics", "runs", "grids", "studies", "convert", "data_commands",
    "cli",
)
__all__ = [*_LAZY, *_MODULES]


def __getattr__(name: str):
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'crlsr' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
