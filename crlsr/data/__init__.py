"""The face of chapter 05_data: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"folders", "sets", "leaks", "preparation", "patches"},
    submod_attrs={
        "folders": ["content_digest", "content_digests"],
        "sets": ["Identity", "data_identity", "difference", "find_data", "match_names", "registry", "registry_rows", "source_files"],
        "leaks": ["DataReport", "check_folder"],
        "patches": ["Batch", "ImagePool", "Pairing", "PatchSampler", "embedded_images", "load_images"],
    },
)
