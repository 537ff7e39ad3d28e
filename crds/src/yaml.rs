//! The CustomResourceDefinitions as YAML.
