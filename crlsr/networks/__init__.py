"""The face of chapter 06_networks: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"blocks", "degradation_remover", "details_remover", "decoder", "features", "restorer",
                "degradation_head"},
    submod_attrs={
        "degradation_remover": ["DegradationRemover"],
        "details_remover": ["DetailsRemover"],
        "decoder": ["SRDecoder"],
        "features": ["FeatureExtractor", "ReconstructionDecoder", "reconstruction_loss"],
        "restorer": ["Features", "NetworkConfig", "Restorer"],
        "degradation_head": ["AwarenessConfig", "DegradationHead", "awareness_loss", "left_to_hide", "pool_features"],
    },
)
