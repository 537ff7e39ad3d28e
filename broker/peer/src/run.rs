//! The calling side of a connection.

use std::{io, sync::Arc};

use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{CallError, Limits},
    dial::Dialled,
    lane::Lane,
    outbox::write_loop,
    stream::StreamError,
};

/// Runs a connection until it ends, fails what waits for an answer, and says why it ended.
pub(crate) async fn run(
    lane: Arc<Lane>,
    dialled: Dialled,
    limits: Limits,
    stopping: CancellationToken,
) -> String {
    let reason = serve(&lane, dialled, limits, stopping).await;
    lane.fail(&CallError::Broken(reason.clone()));
    reason
}

async fn serve(
    lane: &Arc<Lane>,
    dialled: Dialled,
    limits: Limits,
    stopping: CancellationToken,
) -> String {
    let Dialled {
        mut reader,
        mut writer,
        ..
    } = dialled;
    let mut writing = {
        let lane = Arc::clone(lane);
        let write = async move { write_loop(&lane.outbox, &mut writer, limits.keep_alive).await };
        Writing(tokio::spawn(write))
    };
    let mut tick = interval(limits.keep_alive / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut stop_by = None;
    loop {
        tokio::select! {
            filled = reader.fill() => {
                heard = Instant::now();
                if let Err(reason) = filled.and_then(|()| received(lane, &mut reader)) {
                    return reason.to_string();
                }
            }
            _ = tick.tick() => {
                let now = Instant::now();
                if now.duration_since(heard) >= limits.silence {
                    return format!("it was silent for {:?}", limits.silence);
                }
                let waiting = lane.expire(now.into_std());
                if lane.retired().is_some_and(|since| !waiting || since.elapsed() >= limits.retire) {
                    lane.outbox.close();
                }
            }
            end = &mut writing.0 => return end.map_or_else(|error| error.to_string(), written),
            () = stopping.cancelled(), if stop_by.is_none() => {
                stop_by = Some(Instant::now() + limits.stop);
                lane.outbox.close();
            }
            () = sleep_until(stop_by.unwrap_or(heard)), if stop_by.is_some() => {
                return "this broker stops".to_owned();
            }
        }
    }
}

fn received<R: tokio::io::AsyncRead + Unpin>(
    lane: &Lane,
    reader: &mut crate::stream::FrameReader<R>,
) -> Result<(), StreamError> {
    while let Some(frame) = reader.next()? {
        lane.receive(frame).map_err(io::Error::other)?;
    }
    Ok(())
}

pub(crate) fn written(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "it is not needed any more".to_owned(),
        Err(error) => format!("cannot write: {error}"),
    }
}

/// The task that writes; it ends with the connection.
#[derive(Debug)]
pub(crate) struct Writing(pub(crate) JoinHandle<io::Result<()>>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.abort();
    }
}
