"""The face of chapter 07_contrast: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"infonce", "negatives", "alternatives", "bidirectional"},
    submod_attrs={
        "infonce": ["info_nce", "similarity"],
        "negatives": [
            "BatchNegatives", "BothSides", "Chain", "Construction", "Geometry", "KeyQueue", "Negatives",
            "PositionNegatives", "SameDegradation", "TwoDegradations", "gather_vectors",
            "image_vectors", "sample_positions",
        ],
        "alternatives": [
            "Debiased", "Decoupled", "Dissimilar", "Far", "Hard", "Transport", "barlow_twins_loss",
            "feature_l1_loss", "simsiam_loss", "vicreg_loss",
        ],
        "bidirectional": ["BidirectionalContrastiveLoss", "bidirectional_contrastive_loss"],
    },
)
