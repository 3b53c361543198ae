"""The face of chapter 13_evaluation: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"scoring", "comparison", "claims", "grid", "tables", "evidence"},
    submod_attrs={
        "scoring": ["evaluate", "evaluate_pairs", "results_table"],
        "grid": ["evaluate_grid", "read_rows"],
        "tables": ["grid_table"],
    },
)
