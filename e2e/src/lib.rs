//! palisade-e2e
