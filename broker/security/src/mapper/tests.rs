#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

use super::*;

fn map(rules: &[&str], subject: &str) -> Result<String, MapError> {
    PrincipalMapper::parse(rules).unwrap().map_subject(subject)
}

fn certificate(attributes: Vec<(DnType, DnValue)>) -> Vec<u8> {
    let mut name = DistinguishedName::new();
    for (kind, value) in attributes {
        name.push(kind, value);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn utf8(text: &str) -> DnValue {
    DnValue::Utf8String(text.to_owned())
}

#[test]
fn without_rules_the_subject_is_the_name_last_rdn_first() {
    let der = certificate(vec![
        (DnType::CommonName, utf8("alice")),
        (DnType::OrganizationName, utf8("test")),
    ]);
    let mapper = PrincipalMapper::default();
    assert_eq!(mapper.map_certificate(&der).unwrap(), "O=test,CN=alice");
}

#[test]
fn special_characters_are_escaped_as_java_escapes_them() {
    // Java 17 prints this subject as `OU=\ pad\ ,O=te st\, inc,CN=al\=ice\+\"\\\<\>\;\#`.
    let der = certificate(vec![
        (DnType::CommonName, utf8("al=ice+\"\\<>;#")),
        (DnType::OrganizationName, utf8("te st, inc")),
        (DnType::OrganizationalUnitName, utf8(" pad ")),
    ]);
    assert_eq!(
        rfc2253_subject(&der).unwrap(),
        "OU=\\ pad\\ ,O=te st\\, inc,CN=al\\=ice\\+\\\"\\\\\\<\\>\\;\\#"
    );
}

#[test]
fn attributes_without_a_keyword_are_written_as_their_encoding() {
    let email = DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]);
    let der = certificate(vec![
        (DnType::CommonName, utf8("alice")),
        (email, DnValue::Ia5String("a@b.c".try_into().unwrap())),
    ]);
    assert_eq!(
        rfc2253_subject(&der).unwrap(),
        "1.2.840.113549.1.9.1=#16056140622e63,CN=alice"
    );
}

#[test]
fn wide_strings_are_decoded() {
    let der = certificate(vec![(
        DnType::CommonName,
        DnValue::BmpString("Jörg".try_into().unwrap()),
    )]);
    assert_eq!(rfc2253_subject(&der).unwrap(), "CN=Jörg");
}

#[test]
fn several_attributes_of_one_rdn_are_joined_by_a_plus() {
    // subject=CN=alice+UID=7, O=test; made with openssl, which rcgen cannot make.
    let der = include_bytes!("testdata/multi-valued.der");
    assert_eq!(rfc2253_subject(der).unwrap(), "O=test,CN=alice+UID=7");
}

#[test]
fn a_subject_with_a_line_break_names_nobody() {
    let der = certificate(vec![(DnType::CommonName, utf8("alice\nUser:admin"))]);
    assert!(matches!(
        PrincipalMapper::default().map_certificate(&der),
        Err(MapError::Name(NameError::Forbidden { code: 10, .. }))
    ));
    let nul = certificate(vec![(DnType::CommonName, utf8("alice\0.evil"))]);
    assert_eq!(
        PrincipalMapper::default().map_certificate(&nul).unwrap(),
        "CN=alice\\00.evil"
    );
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    assert_eq!(rfc2253_subject(b"nonsense"), Err(SubjectError::Certificate));
    let empty = certificate(vec![]);
    assert_eq!(rfc2253_subject(&empty), Err(SubjectError::Empty));
}

#[test]
fn the_examples_of_kafkas_documentation() {
    let rules = [
        "RULE:^CN=(.*?),OU=ServiceUsers.*$/$1/, RULE:^CN=(.*?),OU=(.*?),O=(.*?),L=(.*?),ST=(.*?),C=(.*?)$/$1@$2/L",
        "RULE:^.*[Cc][Nn]=([a-zA-Z0-9.]*).*$/$1/L",
        "DEFAULT",
    ];
    let of = |subject| map(&rules, subject).unwrap();
    assert_eq!(
        of("CN=serviceuser,OU=ServiceUsers,O=Unknown,L=Unknown,ST=Unknown,C=Unknown"),
        "serviceuser"
    );
    assert_eq!(
        of("CN=adminUser,OU=Admin,O=Unknown,L=Unknown,ST=Unknown,C=Unknown"),
        "adminuser@admin"
    );
    assert_eq!(of("O=test,CN=Alice"), "alice");
    assert_eq!(of("O=nobody"), "O=nobody");
}

#[test]
fn the_first_rule_that_matches_the_whole_subject_counts() {
    assert_eq!(
        map(&["RULE:CN=(\\w+)/one-$1/", "RULE:.*/two/"], "CN=alice,O=x").unwrap(),
        "two"
    );
    assert_eq!(
        map(&["RULE:CN=(\\w+)/one-$1/U", "RULE:.*/two/"], "CN=alice").unwrap(),
        "ONE-ALICE"
    );
    assert_eq!(
        map(&["RULE:CN=a/x/"], "CN=b").unwrap_err().to_string(),
        "no principal mapping rule applies to the certificate subject `CN=b`: add DEFAULT as the last rule to take it as it is"
    );
}

#[test]
fn replacements_read_groups_as_java_does() {
    assert_eq!(map(&["RULE:(a)(b)/$2$1/"], "ab").unwrap(), "ba");
    assert_eq!(map(&["RULE:(a)b/$10/"], "ab").unwrap(), "a0");
    assert_eq!(map(&["RULE:(a)b/$2/"], "ab").unwrap(), "$2");
    assert_eq!(map(&["RULE:(a)b/\\$1/"], "ab").unwrap(), "$1");
    assert_eq!(map(&["RULE:(a)b/x\\/y/"], "ab").unwrap(), "x/y");
    assert_eq!(map(&["RULE:(a)(z)?b/[$2]/"], "ab").unwrap(), "[]");
}

#[test]
fn rules_of_another_shape_are_refused() {
    for rule in [
        "nonsense",
        "RULE:a",
        "RULE:a/b",
        "RULE:a/b/X",
        "DEFAULTS",
        "RULE:a/b/L,nonsense",
    ] {
        assert!(
            matches!(PrincipalMapper::parse(&[rule]), Err(RuleError::Shape(_))),
            "{rule}"
        );
    }
    assert!(matches!(
        PrincipalMapper::parse(&["RULE:(a/b/"]),
        Err(RuleError::Pattern { .. })
    ));
    let many = vec!["DEFAULT"; MAX_RULES + 1];
    assert_eq!(PrincipalMapper::parse(&many).unwrap_err(), RuleError::Limit);
    let long = format!("RULE:{}/b/", "a".repeat(MAX_RULE_BYTES));
    assert_eq!(
        PrincipalMapper::parse(&[long]).unwrap_err(),
        RuleError::Limit
    );
}

proptest! {
    #[test]
    fn arbitrary_rules_and_subjects_never_panic(rule in ".{0,60}", body in ".{0,30}", subject in ".{0,60}") {
        let _ = PrincipalMapper::parse(&[rule]);
        if let Ok(mapper) = PrincipalMapper::parse(&[format!("RULE:.*/{body}/")]) {
            let _ = mapper.map_subject(&subject);
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_certificate(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = rfc2253_subject(&bytes);
    }
}
