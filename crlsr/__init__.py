"""Blind image super-resolution by contrastive learning: CRL-SR (arXiv 2107.00708), readable and reproducible."""
import lazy_loader

__version__ = "0.2.0"

# Chapters, and the two names reachable as `crlsr.NAME`, loaded when first used so that `import crlsr` stays light.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={
        "core", "viz", "images", "degradation", "data", "networks", "contrast", "refinement", "model", "metrics", "inference",
        "training", "evaluation", "diagnosis", "studies", "app",
    },
    submod_attrs={"inference": ["upscale", "load_model"]},
)
