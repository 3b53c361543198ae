"""The face of chapter 03_images: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"files", "scaling", "writing"},
    submod_attrs={
        "files": [
            "MAX_PIXELS", "SUFFIXES", "WRITTEN", "Picture", "check_values", "image_names", "list_images", "max_pixels", "quantize", "read_image",
            "read_samples", "to_samples", "to_tensor",
        ],
        "scaling": ["check_axes", "enlarge", "luma", "modcrop", "resize"],
        "writing": ["check_format", "write_image"],
    },
)
