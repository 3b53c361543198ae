"""The face of chapter 16_app: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"batch", "commands", "cli"},
)
