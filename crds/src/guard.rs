//! The admission rules once more, for objects that were stored before a rule existed.
