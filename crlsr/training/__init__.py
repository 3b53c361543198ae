"""The face of chapter 12_training: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"profiles", "interruptions", "step", "loop", "estimate"},
    submod_attrs={
        "profiles": ["PROFILES", "TrainConfig", "profile"],
        "loop": ["FitResult", "fit"],
    },
)
