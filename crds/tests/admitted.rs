//! What the API server admits the operator can read: one object that it cannot read would end the watch of its whole kind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use palisade_crds::{CertRotation, Period, Schedule, SecureCluster, Size, guard::check_json};
use proptest::prelude::*;
use serde_json::{Value, json};

fn rotation(schedule: &str) -> Value {
    json!({
        "metadata": {"name": "yearly"},
        "spec": {"clusterRef": {"name": "events"}, "target": "BrokerLeaves", "trigger": {"schedule": schedule}},
    })
}

fn cluster(size: &str, validity: &str) -> Value {
    json!({
        "metadata": {"name": "events"},
        "spec": {
            "storage": {"size": size},
            "logEncryption": {"keyProvider": {"secret": {"name": "kek"}}},
            "listeners": [{"name": "internal", "port": 9093, "authentication": ["MutualTls"]}],
            "certificates": {"leafValidity": validity, "clusterAuthority": {"validity": "36500d", "renewBefore": "36000d"},
                "clientsAuthority": {"validity": "36500d", "renewBefore": "36000d"}},
        },
    })
}

/// Whether the admission rules say that the text has the wrong form, whatever else they say.
fn malformed<T: palisade_crds::guard::Guarded>(object: &Value, complaint: &str) -> bool {
    check_json::<T>(object, None).is_err_and(|violations| {
        violations
            .as_slice()
            .iter()
            .any(|violation| violation.contains(complaint))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_schedule_is_admitted_exactly_when_it_can_be_read(text in "([0-9*]|[0-9]{1,2}([-/,][0-9]{1,2}){0,2}|[*]/[0-9]{1,2})( ([0-9*]|[0-9]{1,2}([-/,][0-9]{1,2})?)){3,5}") {
        let admitted = !malformed::<CertRotation>(&rotation(&text), "not a schedule");
        prop_assert_eq!(admitted, text.parse::<Schedule>().is_ok(), "{}", text);
    }

    #[test]
    fn a_size_that_is_admitted_can_be_read(text in "[0-9]{1,16}(k|M|G|T|Ki|Mi|Gi|Ti|m|B|)") {
        let admitted = !malformed::<SecureCluster>(&cluster(&text, "90d"), "not a size");
        prop_assert!(!admitted || text.parse::<Size>().is_ok(), "{}", text);
    }

    #[test]
    fn a_period_is_admitted_exactly_when_it_can_be_read(text in "P?([0-9]{1,6}[dhmswDHMSWT]){0,4}T?([0-9]{1,6}[HMS]){0,2}") {
        let admitted = !malformed::<SecureCluster>(&cluster("10Gi", &text), "not a period");
        prop_assert_eq!(admitted, text.parse::<Period>().is_ok(), "{}", text);
    }
}

#[test]
fn rules_and_parsers_agree_on_what_people_write() {
    for text in [
        "0 3 1 1 *",
        "*/15 * * * *",
        "0 9-17/4 * * 1-5",
        "0 12 1,15 * *",
        "00 03 01 01 07",
        "0 0/01 1 * *",
        "0 * 1 * 00",
        "007 3 1 1 *",
        "5-1 * * * *",
        "1,,2 * * * *",
        "@yearly",
        "0 0 31-1 * *",
    ] {
        let admitted = !malformed::<CertRotation>(&rotation(text), "not a schedule");
        assert_eq!(admitted, text.parse::<Schedule>().is_ok(), "{text}");
    }
    for text in [
        "90d", "24h", "1h30m", "P90D", "PT24H", "P2W", "P", "PT", "", "90", "1.5h", "30m1h", "P1M",
        "P1DT",
    ] {
        let admitted = !malformed::<SecureCluster>(&cluster("10Gi", text), "not a period");
        assert_eq!(admitted, text.parse::<Period>().is_ok(), "{text}");
    }
    for text in [
        "10Mi",
        "9999Ti",
        "999999999999999",
        "65536",
        "1.5Gi",
        "-1",
        "10 Mi",
        "10mi",
    ] {
        let admitted = !malformed::<SecureCluster>(&cluster(text, "90d"), "not a size");
        assert_eq!(admitted, text.parse::<Size>().is_ok(), "{text}");
    }
}
