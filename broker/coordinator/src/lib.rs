//! palisade-coordinator
