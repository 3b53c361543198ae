"""The face of chapter 01_core: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"config", "files", "outputs"},
    submod_attrs={
        "config": [
            "Config", "NUMERICS", "check_choice", "check_least", "check_shares", "digest", "environment", "field_types", "generator", "nearest",
            "read_setting", "require", "seed_everything", "share_path", "shown",
        ],
        "files": [
            "NotWritten", "PARTIAL", "append_jsonl", "atomic_path", "decimal", "file_digest", "plain", "read_json", "read_jsonl", "remove_partials", "write_json",
            "writing",
        ],
        "outputs": ["Failures", "Held", "Ledger", "STOP_SIGNALS", "check_targets", "held_folder", "is_file_name"],
    },
)
