//! A key provider in memory: what the disks hold is sealed as it is in a broker.

use palisade_seal::{KekId, KeyProvider, SealError, SecretKey, WrappedKey};

/// One key for all.
#[derive(Debug)]
pub(crate) struct MemoryKeys {
    id: KekId,
    key: SecretKey,
}

impl MemoryKeys {
    pub(crate) fn new() -> Result<Self, SealError> {
        Ok(Self {
            id: KekId::new("simulation")?,
            key: SecretKey::from_bytes(*b"a key that nothing depends on 32"),
        })
    }
}

impl KeyProvider for MemoryKeys {
    fn current(&self) -> KekId {
        self.id.clone()
    }

    fn wrap(&self, key: &SecretKey, context: &[u8]) -> Result<WrappedKey, SealError> {
        WrappedKey::wrap(self.id.clone(), &self.key, key, context)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<SecretKey, SealError> {
        wrapped.unwrap_with(&self.key, "memory", context)
    }
}
