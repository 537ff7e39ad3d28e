//! librdkafka with as little on top as there can be. The only file with `unsafe` code.
//!
//! The `rdkafka` crate copies each payload, converts each topic name to a C string and makes a Rust object of each delivery;
//! at a million records a second that is what would be measured. Here a record is one `rd_kafka_produce` of bytes that live for
//! ever, and deliveries and messages arrive in batches.
//!
//! Soundness: the handles are made in `new`, never null afterwards, used only through `&self` of their owner, and destroyed once, in
//! `drop`, children (queues, topics) before the client. librdkafka's functions may be called from any thread.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr, slice,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use rdkafka_sys::{
    RD_KAFKA_EVENT_DR, RD_KAFKA_EVENT_ERROR, RD_KAFKA_MSG_F_COPY, RD_KAFKA_PURGE_F_INFLIGHT,
    RD_KAFKA_PURGE_F_QUEUE, RDKafka, RDKafkaErrorCode, RDKafkaMessage, RDKafkaQueue,
    RDKafkaRespErr, RDKafkaTopic, bindings as c,
};

/// Messages taken at once.
const BATCH: usize = 4096;

/// The version of the C library.
pub fn version() -> String {
    // SAFETY: returns a static string.
    unsafe { CStr::from_ptr(c::rd_kafka_version_str()) }
        .to_string_lossy()
        .into_owned()
}

/// One client instance and the queue its events or messages arrive on.
#[derive(Debug)]
struct Client {
    client: *mut RDKafka,
    queue: *mut RDKafkaQueue,
}

impl Client {
    fn new(
        kind: rdkafka_sys::RDKafkaType,
        settings: &[(String, String)],
        queue: unsafe extern "C" fn(*mut RDKafka) -> *mut RDKafkaQueue,
    ) -> Result<Self> {
        let mut error = [0 as c_char; 512];
        // SAFETY: the configuration is ours until rd_kafka_new succeeds, which takes it; strings outlive the calls.
        unsafe {
            let conf = c::rd_kafka_conf_new();
            for (key, value) in settings {
                let (name, text) = (CString::new(key.as_str())?, CString::new(value.as_str())?);
                let set = c::rd_kafka_conf_set(
                    conf,
                    name.as_ptr(),
                    text.as_ptr(),
                    error.as_mut_ptr(),
                    error.len(),
                );
                if set as i32 != 0 {
                    c::rd_kafka_conf_destroy(conf);
                    bail!("librdkafka refuses {key}: {}", text_of(&error));
                }
            }
            c::rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR);
            let client = c::rd_kafka_new(kind, conf, error.as_mut_ptr(), error.len());
            if client.is_null() {
                c::rd_kafka_conf_destroy(conf);
                bail!("cannot start librdkafka: {}", text_of(&error));
            }
            Ok(Self {
                client,
                queue: queue(client),
            })
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: both were made in `new` and are destroyed only here, the queue first.
        unsafe {
            c::rd_kafka_queue_destroy(self.queue);
            c::rd_kafka_destroy(self.client);
        }
    }
}

/// What became of one record.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// What `send` was given.
    pub tag: u64,
    /// Whether the broker acknowledged it.
    pub acknowledged: bool,
}

/// A producer of some topics.
#[derive(Debug)]
pub struct Producer {
    // Declared and dropped before the client.
    topics: Vec<Topic>,
    client: Client,
}

// SAFETY: all that `&Producer` allows are calls that librdkafka allows from any thread at the same time.
unsafe impl Sync for Producer {}

#[derive(Debug)]
struct Topic(*mut RDKafkaTopic);

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: made in `Producer::new`, destroyed only here, before its client.
        unsafe { c::rd_kafka_topic_destroy(self.0) }
    }
}

/// Whether a record was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It will be reported by `poll`.
    Queued,
    /// The local queue is full: poll, and try again.
    Full,
}

impl Producer {
    pub fn new(settings: &[(String, String)], topics: &[String]) -> Result<Self> {
        let client = Client::new(
            rdkafka_sys::RDKafkaType::RD_KAFKA_PRODUCER,
            settings,
            c::rd_kafka_queue_get_main,
        )?;
        let mut made = Vec::with_capacity(topics.len());
        for topic in topics {
            let name = CString::new(topic.as_str())?;
            // SAFETY: the client lives; without a configuration the topic takes the client's defaults.
            let topic =
                unsafe { c::rd_kafka_topic_new(client.client, name.as_ptr(), ptr::null_mut()) };
            if topic.is_null() {
                bail!("librdkafka refuses the topic");
            }
            made.push(Topic(topic));
        }
        Ok(Self {
            topics: made,
            client,
        })
    }

    /// Queues a record whose bytes live for ever: they are not copied. Partition -1 lets librdkafka choose.
    pub fn send(
        &self,
        topic: usize,
        partition: i32,
        payload: &'static [u8],
        tag: u64,
    ) -> Result<Sent> {
        self.produce(topic, partition, payload, tag, 0)
    }

    /// Queues a copy of a record.
    pub fn send_copy(
        &self,
        topic: usize,
        partition: i32,
        payload: &[u8],
        tag: u64,
    ) -> Result<Sent> {
        self.produce(topic, partition, payload, tag, RD_KAFKA_MSG_F_COPY)
    }

    fn produce(
        &self,
        topic: usize,
        partition: i32,
        payload: &[u8],
        tag: u64,
        flags: i32,
    ) -> Result<Sent> {
        let topic = self.topics.get(topic).context("no such topic")?;
        // SAFETY: librdkafka only reads the payload; without F_COPY it is static, and without F_FREE it is not freed. The tag travels as a
        // pointer that nobody follows.
        let failed = unsafe {
            c::rd_kafka_produce(
                topic.0,
                partition,
                flags,
                payload.as_ptr().cast_mut().cast::<c_void>(),
                payload.len(),
                ptr::null(),
                0,
                ptr::without_provenance_mut(usize::try_from(tag)?),
            )
        };
        if failed == 0 {
            return Ok(Sent::Queued);
        }
        // SAFETY: reads the thread's last error.
        let error = unsafe { c::rd_kafka_last_error() };
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            return Ok(Sent::Full);
        }
        bail!("librdkafka refuses a record: {}", describe(error))
    }

    /// Takes what has been delivered, waiting at most so long for the first event.
    pub fn poll(&self, wait_ms: i32, mut deliver: impl FnMut(Delivery)) -> Result<()> {
        let mut wait = wait_ms;
        loop {
            // SAFETY: the event is ours until destroyed; its messages live as long as it does.
            unsafe {
                let event = c::rd_kafka_queue_poll(self.client.queue, wait);
                if event.is_null() {
                    return Ok(());
                }
                wait = 0;
                if c::rd_kafka_event_type(event) == RD_KAFKA_EVENT_DR {
                    let mut messages = [ptr::null::<RDKafkaMessage>(); BATCH];
                    loop {
                        let count =
                            c::rd_kafka_event_message_array(event, messages.as_mut_ptr(), BATCH);
                        for message in messages.iter().take(count) {
                            // The opaque pointer is the number given to `send`.
                            deliver(Delivery {
                                tag: (**message)._private.addr() as u64,
                                acknowledged: (**message).err
                                    == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
                            });
                        }
                        if count < BATCH {
                            break;
                        }
                    }
                }
                c::rd_kafka_event_destroy(event);
            }
        }
    }

    /// Gives up all records that are not acknowledged, so that dropping does not wait for them.
    pub fn purge(&self) -> Result<()> {
        // SAFETY: the client lives.
        unsafe {
            c::rd_kafka_purge(
                self.client.client,
                RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT,
            );
        }
        // They are reported one more time; those that a broker's thread holds, a moment later.
        for _ in 0..100 {
            // SAFETY: the client lives.
            if unsafe { c::rd_kafka_outq_len(self.client.client) } == 0 {
                break;
            }
            self.poll(10, |_| {})?;
        }
        Ok(())
    }
}

/// A consumer of all partitions of one topic from its beginning, without a group.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    batch: Vec<*mut RDKafkaMessage>,
}

// SAFETY: moving the handles to another thread is allowed by librdkafka.
unsafe impl Send for Consumer {}

impl Consumer {
    pub fn new(settings: &[(String, String)], topic: &str, partitions: i32) -> Result<Self> {
        let client = Client::new(
            rdkafka_sys::RDKafkaType::RD_KAFKA_CONSUMER,
            settings,
            c::rd_kafka_queue_get_consumer,
        )?;
        let name = CString::new(topic)?;
        // SAFETY: the list is ours; assign copies it.
        let error = unsafe {
            let list = c::rd_kafka_topic_partition_list_new(partitions);
            for partition in 0..partitions {
                let entry = c::rd_kafka_topic_partition_list_add(list, name.as_ptr(), partition);
                (*entry).offset = i64::from(c::RD_KAFKA_OFFSET_BEGINNING);
            }
            let error = c::rd_kafka_assign(client.client, list);
            c::rd_kafka_topic_partition_list_destroy(list);
            error
        };
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            bail!("cannot assign partitions: {}", describe(error));
        }
        Ok(Self {
            client,
            batch: vec![ptr::null_mut(); BATCH],
        })
    }

    /// Hands over the payloads that are there, with the moment at which they had come, waiting at most so long for the first one.
    pub fn poll(&mut self, wait_ms: i32, mut take: impl FnMut(Instant, &[u8])) -> Result<()> {
        // librdkafka waits until there are as many as it is asked for: with time for one, without time for the rest.
        for (wanted, wait_ms) in [(1, wait_ms), (self.batch.len(), 0)] {
            // SAFETY: the array has room for as many pointers as is said; each message is ours until destroyed.
            unsafe {
                let count = c::rd_kafka_consume_batch_queue(
                    self.client.queue,
                    wait_ms,
                    self.batch.as_mut_ptr(),
                    wanted,
                );
                let received = Instant::now();
                let count = usize::try_from(count).context("cannot consume")?;
                for &message in self.batch.iter().take(count) {
                    let inner = &*message;
                    if inner.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
                        && !inner.payload.is_null()
                    {
                        let bytes = inner.payload.cast::<u8>();
                        take(received, slice::from_raw_parts(bytes, inner.len));
                    }
                    c::rd_kafka_message_destroy(message);
                }
                if count == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn describe(error: RDKafkaRespErr) -> String {
    RDKafkaErrorCode::from(error).to_string()
}

fn text_of(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| byte.cast_unsigned())
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
