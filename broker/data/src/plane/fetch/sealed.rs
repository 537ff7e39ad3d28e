//! Records on their way to a client, still sealed.
//!
//! They are opened one batch after the other while they are sent: the client works on the first while the next is opened, and megabytes of plaintext are never
//! held at once.

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::Bytes;
use palisade_log::{LeaderEpoch, Offset};

use super::Located;
use crate::{
    catalog::TopicView, command::Key, sealing::batch_aad, slot::Partition, types::DataError,
};

/// Whole batches of one partition, in order.
pub struct SealedRecords {
    key: Key,
    view: Arc<TopicView>,
    partition: Option<Arc<Partition>>,
    batches: VecDeque<Sealed>,
    /// Bytes of all batches once they are opened.
    len: usize,
}

struct Sealed {
    base: Offset,
    epoch: LeaderEpoch,
    payload: Bytes,
}

impl SealedRecords {
    pub(super) fn of(at: &Located, partition: Option<Arc<Partition>>) -> Self {
        Self {
            key: at.key,
            view: Arc::clone(&at.view),
            partition,
            batches: VecDeque::new(),
            len: 0,
        }
    }

    /// Adds a batch whose data key is there.
    pub(super) fn push(
        &mut self,
        base: Offset,
        epoch: LeaderEpoch,
        payload: Bytes,
    ) -> Result<(), DataError> {
        self.len = self
            .len
            .saturating_add(self.view.keys.sealed_len(&payload)?);
        self.batches.push_back(Sealed {
            base,
            epoch,
            payload,
        });
        Ok(())
    }

    /// Bytes that [`SealedRecords::open_next`] gives in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Lets go of all batches.
    pub fn clear(&mut self) {
        self.batches.clear();
        self.len = 0;
    }

    /// Appends the next batch to `out`, ready to be sent; `false` when there is none left.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when it was tampered with; its place is quarantined then, so the next fetch of it is told so. Mere damage is found before, when
    /// records are read.
    pub fn open_next(&mut self, out: &mut Vec<u8>) -> Result<bool, DataError> {
        let Some(Sealed {
            base,
            epoch,
            payload,
        }) = self.batches.pop_front()
        else {
            return Ok(false);
        };
        let aad = batch_aad(self.key.0, self.key.1, base, epoch);
        let opened = self.view.keys.open_into(&aad, &payload, out);
        opened.map(|()| true).map_err(|error| {
            if !error.is_corruption() {
                return error.into();
            }
            let reason = format!("the batch at offset {base}: {error}");
            if let Some(partition) = &self.partition {
                partition.log.quarantine(base, &reason);
            }
            DataError::Corrupt(reason)
        })
    }

    /// All batches back to back.
    ///
    /// # Errors
    /// As [`SealedRecords::open_next`].
    pub fn open_all(mut self) -> Result<Vec<u8>, DataError> {
        let mut out = Vec::new();
        while self.open_next(&mut out)? {}
        Ok(out)
    }
}

impl fmt::Debug for SealedRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedRecords")
            .field("batches", &self.batches.len())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
