//! palisade-seal
