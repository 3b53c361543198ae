"""The face of chapter 08_refinement: names that others build on, loaded when first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"negatives", "conditional"},
    submod_attrs={
        "negatives": [
            "BicubicNegatives", "BlurredNegatives", "Construction", "ContentNegatives", "Context",
            "FieldNegatives", "HRPositionNegatives", "NoNegatives", "PastNegatives", "ResidualNegatives",
            "UnexplainedNegatives", "UnionNegatives",
        ],
        "conditional": [
            "Comparison", "ConditionalContrastiveLoss", "FeatureL1", "TripletMargin",
            "conditional_contrastive_loss",
        ],
    },
)
