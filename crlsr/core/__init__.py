"""The face of chapter 01_core: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"config", "files"},
    submod_attrs={
        "config": [
            "Config", "NUMERICS", "check_choice", "check_least", "check_shares", "digest", "environment", "field_types", "generator", "nearest",
            "read_setting", "require", "seed_everything", "share_path", "shown",
        ],
        "files": ["append_jsonl", "atomic_path", "file_digest", "read_jsonl"],
    },
)
