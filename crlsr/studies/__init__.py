"""The face of chapter 15_studies: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"execution", "outcomes", "running", "studies"},
    submod_attrs={
        "outcomes": ["Outcome", "read_outcome"],
        "running": ["build_report", "run_study"],
        "studies": ["Study", "load_study", "study_names"],
    },
)
