//! Images: references, configurations, layers.
