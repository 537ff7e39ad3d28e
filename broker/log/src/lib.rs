//! palisade-log
