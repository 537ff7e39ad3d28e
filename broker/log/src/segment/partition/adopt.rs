//! Logs that were filled elsewhere: a replica that has fallen behind receives batches beside its own log, and takes them over as a whole.

use std::sync::{Arc, atomic::Ordering};

use super::PartitionLog;
use crate::{
    LogError,
    segment::{Rolling, file::Segment},
};

impl PartitionLog {
    /// Takes over the files of a log that begins where this one ends, without copying them. What was written to it is durable afterwards; its directory is gone.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when it begins elsewhere or is damaged; trouble with the disk. This log is as before then, with files beyond its end that the next
    /// [`PartitionLog::open`] removes; the other one is lost.
    pub fn adopt(&self, other: &Self, rolling: Rolling, now_ms: i64) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        other.sync(rolling, now_ms)?;
        let (end, segments) = {
            let inner = other.inner.read();
            (inner.end, inner.segments.clone())
        };
        let begin = other.begin;
        let (here, backlog) = {
            let inner = self.inner.read();
            (inner.end, inner.backlog.len())
        };
        if begin != here || backlog > 0 || segments.iter().any(|one| one.damage().is_some()) {
            return Err(LogError::Invalid(format!(
                "a log that begins at {begin} cannot continue one that ends at {here} with {backlog} batches to be written"
            )));
        }
        let dir = &self.around.dir;
        self.around
            .fs
            .create_dir_all(dir)
            .map_err(LogError::io("create", dir))?;
        self.dir_changed.store(true, Ordering::Release);
        let mut taken = Vec::with_capacity(segments.len());
        for segment in &segments {
            taken.push(Arc::new(Segment::adopt(&self.around, segment)?));
        }
        writer.frames = None;
        {
            let mut inner = self.inner.write();
            // Two segments of one base: the one here is empty, as in `roll`.
            inner.segments.retain(|segment| segment.base < here);
            inner.segments.extend(taken);
            inner.end = end;
        }
        // Nothing of it is needed; left behind, it is a stray for the next start.
        if let Err(error) = other.remove() {
            tracing::warn!(%error, "cannot remove a directory that is not needed any more");
        }
        Ok(())
    }
}
