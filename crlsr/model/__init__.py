"""The face of chapter 09_model: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"decoupling", "refining", "config", "crlsr", "estimating_control", "files", "shares"},
    submod_attrs={
        "decoupling": ["Decoupling", "DecouplingConfig", "Labels", "VectorConfig"],
        "refining": ["Refinement", "RefinementConfig"],
        "config": ["EstimatingConfig", "FLAT", "ModelConfig", "ScheduleConfig"],
        "crlsr": ["CRLSR", "Losses"],
        "estimating_control": ["EstimatingSR", "METHODS", "Told", "new_model", "told"],
        "files": ["load_model_file", "load_pretrained", "save_model", "save_pretrained"],
    },
)
