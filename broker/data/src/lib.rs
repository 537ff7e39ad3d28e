//! palisade-data
