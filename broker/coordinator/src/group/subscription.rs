//! Which topics a member subscribes to, from the metadata that the `consumer` protocols send.

use std::collections::BTreeSet;

/// `protocol_type` of consumers, whose metadata is a subscription.
pub(crate) const CONSUMER: &str = "consumer";

/// The topics of a `ConsumerProtocolSubscription`: a 16-bit version, a 32-bit count, and as many strings with 16-bit lengths;
/// what follows differs between versions and is not needed. `None` when it is not that.
pub(crate) fn topics(metadata: &[u8]) -> Option<BTreeSet<String>> {
    let (version, rest) = metadata.split_first_chunk::<2>()?;
    if i16::from_be_bytes(*version) < 0 {
        return None;
    }
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let count = i32::from_be_bytes(*count);
    let mut topics = BTreeSet::new();
    for _ in 0..u32::try_from(count).ok()? {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        let (name, after) = after.split_at_checked(length)?;
        topics.insert(std::str::from_utf8(name).ok()?.to_owned());
        rest = after;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subscription(topics: &[&str], tail: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 3];
        bytes.extend(u32::try_from(topics.len()).unwrap_or(0).to_be_bytes());
        for topic in topics {
            bytes.extend(u16::try_from(topic.len()).unwrap_or(0).to_be_bytes());
            bytes.extend(topic.as_bytes());
        }
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn topics_are_read_and_what_follows_is_not() {
        let bytes = subscription(&["orders", "clicks"], b"user data and more");
        let expected = ["clicks", "orders"].map(str::to_owned);
        assert_eq!(topics(&bytes), Some(BTreeSet::from(expected)));
        assert_eq!(topics(&subscription(&[], b"")), Some(BTreeSet::new()));
    }

    #[test]
    fn what_is_cut_short_or_absurd_is_no_subscription() {
        let bytes = subscription(&["orders"], b"");
        for length in 0..bytes.len() {
            assert_eq!(topics(bytes.get(..length).unwrap_or_default()), None);
        }
        assert_eq!(topics(&[0, 0, 0x7f, 0xff, 0xff, 0xff]), None);
        assert_eq!(topics(&[0, 0, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(topics(&[0xff, 0xff, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = topics(&bytes);
        }
    }
}
