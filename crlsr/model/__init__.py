"""The face of chapter 09_model: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"decoupling", "refining", "config", "crlsr", "shares"},
    submod_attrs={
        "decoupling": ["Decoupling", "DecouplingConfig", "Labels", "VectorConfig"],
        "refining": ["Refinement", "RefinementConfig"],
        "config": ["FLAT", "ModelConfig", "ScheduleConfig"],
        "crlsr": ["CRLSR", "Losses", "load_model_file", "save_model"],
    },
)
