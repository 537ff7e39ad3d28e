//! palisade-metadata
