"""The face of chapter 11_inference: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"loading", "upscaling", "export"},
    submod_attrs={
        "loading": ["Bicubic", "load_model"],
        "upscaling": ["MEMORY", "OVERLAP", "auto_tile", "bytes_per_pixel", "memory_bytes", "upscale"],
        "export": ["export_onnx"],
    },
)
