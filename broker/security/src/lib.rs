//! palisade-security
