//! Everything that proves Palisade's claims: a real Kubernetes that runs without a container engine,
//! container images built without one, and the drivers of the demo and the end-to-end tests.

pub mod cluster;
pub mod demo;
pub mod image;
mod ports;
pub mod progress;
pub mod scenario;
pub mod tools;
