//! palisade-operator
