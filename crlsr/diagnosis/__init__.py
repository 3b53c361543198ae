"""The face of chapter 14_diagnosis: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"measures", "interventions", "tables", "report", "figures"},
    submod_attrs={
        "report": ["ProbeReport", "diagnose"],
    },
)
