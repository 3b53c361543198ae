"""The face of chapter 04_degradation: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"kernels", "kernel_families", "blur", "noise_jpeg", "spatial", "operations", "sources", "real_world", "replay", "presets"},
    submod_attrs={
        "sources": ["SIGMA_RANGE"],
        "replay": ["DegradationParams", "apply_params", "kernel_of", "load_params", "parameter_maps", "save_params"],
        "presets": ["Degradation"],
    },
)
