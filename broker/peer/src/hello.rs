//! The first frame of each side: who it is, and whether the other wants to talk to it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use palisade_shard::{Message, NodeId};

use crate::{
    api::PeerCertificate,
    frame::{Frame, What},
};

/// Version of everything after the version.
pub(crate) const VERSION: u16 = 1;
/// Largest frame before the hello is accepted.
pub(crate) const MAX_HELLO: usize = 4096;
const MAX_REASON: usize = 1024;
const MAX_CLUSTER_ID: usize = 256;

/// Who one side is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    pub(crate) cluster_id: String,
    pub(crate) node: NodeId,
    pub(crate) broker: i32,
    /// Everything that was sent on the connection before has arrived, and its answers are still wanted. Otherwise earlier connections of the broker are dead.
    pub(crate) takes_over: bool,
}

impl Hello {
    pub(crate) fn frame(&self) -> Frame {
        let mut head = BytesMut::new();
        head.put_u16(self.version);
        head.put_u64(self.node.0);
        head.put_i32(self.broker);
        head.put_u8(u8::from(self.takes_over));
        head.put_slice(self.cluster_id.as_bytes());
        with_head(What::Hello, head.freeze())
    }

    /// Reads what another version means only as far as all versions agree: the version.
    pub(crate) fn parse(frame: &Frame) -> Result<Self, String> {
        if frame.what != What::Hello {
            return Err("it does not begin with a hello".to_owned());
        }
        let mut head: &[u8] = &frame.message.head;
        let broken = |_| "its hello is broken".to_owned();
        let version = head.try_get_u16().map_err(broken)?;
        if version != VERSION {
            return Err(format!(
                "it speaks version {version} of the protocol, this broker speaks {VERSION}"
            ));
        }
        let node = NodeId(head.try_get_u64().map_err(broken)?);
        let broker = head.try_get_i32().map_err(broken)?;
        let takes_over = head.try_get_u8().map_err(broken)? != 0;
        let cluster_id = match std::str::from_utf8(head) {
            Ok(id) if head.len() <= MAX_CLUSTER_ID => id.to_owned(),
            _ => return Err("its cluster id is not readable".to_owned()),
        };
        if broker < 0 || node.broker() != broker {
            return Err(format!("it claims to be broker {broker} and {node}"));
        }
        Ok(Self {
            version,
            cluster_id,
            node,
            broker,
            takes_over,
        })
    }

    /// Whether the other side may talk to this one.
    fn is_of(&self, mine: &Self) -> Result<(), String> {
        if self.cluster_id != mine.cluster_id {
            return Err(format!(
                "it belongs to cluster {:?}, this broker to {:?}",
                self.cluster_id, mine.cluster_id
            ));
        }
        if self.broker == mine.broker {
            return Err(format!("it claims to be this broker, {}", mine.broker));
        }
        Ok(())
    }
}

/// Whether a hello that arrived with a certificate is believed. `host` is where the claimed broker is known to be.
pub(crate) fn judge_client(
    theirs: &Hello,
    mine: &Hello,
    host: Option<&str>,
    certificate: &PeerCertificate,
) -> Result<(), String> {
    theirs.is_of(mine)?;
    let broker = theirs.broker;
    match host {
        None => Err(format!("no address of broker {broker} is known here")),
        Some(host) if certificate.is_for(host) => Ok(()),
        Some(host) => Err(format!(
            "it claims to be broker {broker}, but its certificate is not valid for {host}"
        )),
    }
}

/// Whether the answer to the own hello comes from the broker that was called. Its host was verified by TLS.
pub(crate) fn judge_server(theirs: &Hello, mine: &Hello, called: i32) -> Result<(), String> {
    theirs.is_of(mine)?;
    if theirs.broker != called {
        return Err(format!(
            "broker {} answers instead of broker {called}",
            theirs.broker
        ));
    }
    Ok(())
}

/// Says no.
pub(crate) fn rejection(reason: &str) -> Frame {
    let end = reason.floor_char_boundary(MAX_REASON);
    let head = Bytes::copy_from_slice(reason.get(..end).unwrap_or_default().as_bytes());
    with_head(What::Reject, head)
}

fn with_head(what: What, head: Bytes) -> Frame {
    Frame {
        message: Message {
            kind: 0,
            head,
            payload: Vec::new(),
        },
        ..Frame::bare(what, 0)
    }
}

/// What the fuzzer calls.
#[doc(hidden)]
pub fn decode_hello(head: &[u8]) {
    drop(Hello::parse(&with_head(
        What::Hello,
        Bytes::copy_from_slice(head),
    )));
    drop(text(head));
}

/// Text from a peer, fit for a log.
pub(crate) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_REASON).unwrap_or(bytes);
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    fn hello(broker: i32, cluster: &str) -> Hello {
        Hello {
            version: VERSION,
            cluster_id: cluster.to_owned(),
            node: NodeId::of(broker, 77),
            broker,
            takes_over: broker % 2 == 1,
        }
    }

    fn names(sans: &[&str]) -> PeerCertificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let sans: Vec<String> = sans.iter().map(|san| (*san).to_owned()).collect();
        let certificate = rcgen::CertificateParams::new(sans)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        PeerCertificate::new(vec![certificate.der().clone()])
    }

    #[test]
    fn a_hello_comes_back_as_it_was() {
        for broker in [0, 1, i32::MAX] {
            let hello = hello(broker, "kafka-äö");
            assert_eq!(Hello::parse(&hello.frame()).unwrap(), hello);
        }
    }

    #[test]
    fn a_hello_that_cannot_be_is_named() {
        let cases: [(Hello, &str); 4] = [
            (
                Hello {
                    version: 9,
                    ..hello(1, "c")
                },
                "speaks version 9 of the protocol, this broker speaks 1",
            ),
            (
                Hello {
                    broker: 2,
                    ..hello(1, "c")
                },
                "claims to be broker 2 and broker 1",
            ),
            (hello(-1, "c"), "claims to be broker -1"),
            (hello(1, &"c".repeat(257)), "cluster id is not readable"),
        ];
        for (hello, expected) in cases {
            let error = Hello::parse(&hello.frame()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = Hello::parse(&Frame::bare(What::Request, 1)).unwrap_err();
        assert!(error.contains("does not begin with a hello"), "{error}");
    }

    #[test]
    fn only_the_broker_that_the_certificate_names_is_believed() {
        let mine = hello(1, "c");
        let own = names(&["b2.example", "10.0.0.2"]);
        let judge = |theirs: Hello, host: Option<&str>| judge_client(&theirs, &mine, host, &own);
        assert_eq!(judge(hello(2, "c"), Some("b2.example")), Ok(()));
        assert_eq!(judge(hello(2, "c"), Some("10.0.0.2")), Ok(()));
        let cases = [
            (
                hello(2, "d"),
                Some("b2.example"),
                "cluster \"d\", this broker to \"c\"",
            ),
            (
                hello(1, "c"),
                Some("b2.example"),
                "claims to be this broker",
            ),
            (hello(2, "c"), None, "no address of broker 2"),
            (
                hello(3, "c"),
                Some("b3.example"),
                "not valid for b3.example",
            ),
            (hello(2, "c"), Some("10.0.0.3"), "not valid for 10.0.0.3"),
            (hello(2, "c"), Some("not a host"), "not valid for"),
        ];
        for (theirs, host, expected) in cases {
            let error = judge(theirs, host).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_the_broker_that_was_called_may_answer() {
        let mine = hello(1, "c");
        assert_eq!(judge_server(&hello(2, "c"), &mine, 2), Ok(()));
        let error = judge_server(&hello(3, "c"), &mine, 2).unwrap_err();
        assert!(
            error.contains("broker 3 answers instead of broker 2"),
            "{error}"
        );
        assert!(judge_server(&hello(2, "d"), &mine, 2).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_heads_never_panic(head in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(Hello::parse(&with_head(What::Hello, head.clone().into())));
            text(&head);
        }
    }
}
