#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn named(name: &str) -> EntityName {
    EntityName::Named(name.to_owned())
}

const KEY: QuotaKey = QuotaKey::ProducerByteRate;

/// Kafka's eight levels, the first that applies first.
fn levels() -> [QuotaEntity; 8] {
    use EntityName::Default;
    [
        QuotaEntity::UserClientId(named("alice"), named("app")),
        QuotaEntity::UserClientId(named("alice"), Default),
        QuotaEntity::User(named("alice")),
        QuotaEntity::UserClientId(Default, named("app")),
        QuotaEntity::UserClientId(Default, Default),
        QuotaEntity::User(Default),
        QuotaEntity::ClientId(named("app")),
        QuotaEntity::ClientId(Default),
    ]
}

#[test]
fn the_most_specific_limit_counts() {
    let mut quotas = QuotaSet::new();
    for (index, entity) in levels().iter().enumerate() {
        let value = f64::from(u8::try_from(index).unwrap() + 1);
        quotas.alter(entity, &[(KEY, Some(value))]).unwrap();
    }
    // Taken away one by one, each level's successor counts.
    for (index, entity) in levels().iter().enumerate() {
        let value = f64::from(u8::try_from(index).unwrap() + 1);
        assert_eq!(quotas.limit(KEY, "alice", "app").unwrap().value, value);
        quotas.alter(entity, &[(KEY, None)]).unwrap();
    }
    assert_eq!(quotas.limit(KEY, "alice", "app"), None);
    assert!(quotas.is_empty());
}

#[test]
fn who_shares_a_limit_depends_on_its_level() {
    let bucket = |entity: &QuotaEntity| {
        let mut quotas = QuotaSet::new();
        quotas.alter(entity, &[(KEY, Some(5.0))]).unwrap();
        let bucket = quotas.limit(KEY, "alice", "app").unwrap().bucket;
        (bucket.user.is_some(), bucket.client_id.is_some())
    };
    let shared: Vec<(bool, bool)> = levels().iter().map(bucket).collect();
    let (both, user, client) = ((true, true), (true, false), (false, true));
    assert_eq!(shared, [both, both, user, both, both, user, client, client]);
}

#[test]
fn keys_are_independent_of_each_other() {
    let mut quotas = QuotaSet::new();
    let alice = QuotaEntity::User(named("alice"));
    quotas
        .alter(&alice, &[(QuotaKey::RequestPercentage, Some(12.5))])
        .unwrap();
    quotas
        .alter(&QuotaEntity::ClientId(named("app")), &[(KEY, Some(7.0))])
        .unwrap();
    assert_eq!(quotas.limit(KEY, "alice", "app").unwrap().value, 7.0);
    let percent = quotas.limit(QuotaKey::RequestPercentage, "alice", "app");
    assert_eq!(percent.unwrap().value, 12.5);
    assert_eq!(
        quotas.limit(QuotaKey::ConsumerByteRate, "alice", "app"),
        None
    );
}

#[test]
fn addresses_have_their_own_limit_or_the_default() {
    let mut quotas = QuotaSet::new();
    let rate = QuotaKey::ConnectionCreationRate;
    quotas
        .alter(&QuotaEntity::Ip(EntityName::Default), &[(rate, Some(10.0))])
        .unwrap();
    quotas
        .alter(&QuotaEntity::Ip(named("10.0.0.9")), &[(rate, Some(99.0))])
        .unwrap();
    let of = |address: &str| quotas.connection_rate(address.parse().unwrap());
    assert_eq!(of("10.0.0.9"), Some(99.0));
    assert_eq!(of("::ffff:10.0.0.9"), Some(99.0));
    assert_eq!(of("10.0.0.8"), Some(10.0));
    assert_eq!(
        QuotaSet::new().connection_rate("::1".parse().unwrap()),
        None
    );
}

#[test]
fn a_refused_change_changes_nothing() {
    let mut quotas = QuotaSet::new();
    let alice = QuotaEntity::User(named("alice"));
    quotas.alter(&alice, &[(KEY, Some(5.0))]).unwrap();
    let before = quotas.clone();
    for (changes, error) in [
        (
            vec![(KEY, None), (KEY, Some(0.0))],
            QuotaError::NotPositive(KEY),
        ),
        (vec![(KEY, Some(f64::NAN))], QuotaError::NotPositive(KEY)),
        (
            vec![(KEY, Some(f64::INFINITY))],
            QuotaError::NotPositive(KEY),
        ),
        (vec![(KEY, Some(1.5))], QuotaError::Fraction(KEY)),
        (
            vec![(QuotaKey::ConnectionCreationRate, Some(5.0))],
            QuotaError::WrongKey(QuotaKey::ConnectionCreationRate),
        ),
    ] {
        assert_eq!(quotas.alter(&alice, &changes), Err(error));
        assert_eq!(quotas, before);
    }
    let address = QuotaEntity::Ip(named("10.0.0.1"));
    assert_eq!(
        quotas.alter(&address, &[(KEY, Some(5.0))]),
        Err(QuotaError::WrongKey(KEY))
    );
}

#[test]
fn entities_are_made_of_parts_that_go_together() {
    let parts = |parts: &[(&str, Option<&str>)]| {
        QuotaEntity::from_parts(
            parts
                .iter()
                .map(|(kind, name)| ((*kind).to_owned(), name.map(str::to_owned))),
        )
    };
    assert_eq!(
        parts(&[("client-id", None), ("user", Some("alice"))]),
        Ok(QuotaEntity::UserClientId(
            named("alice"),
            EntityName::Default
        ))
    );
    assert_eq!(parts(&[]), Err(QuotaError::Entity));
    assert_eq!(
        parts(&[("ip", None), ("user", None)]),
        Err(QuotaError::Entity)
    );
    assert_eq!(
        parts(&[("user", None), ("user", Some("a"))]),
        Err(QuotaError::Duplicate("user".to_owned()))
    );
    assert_eq!(
        parts(&[("group", None)]),
        Err(QuotaError::UnknownEntity("group".to_owned()))
    );
    assert_eq!(
        parts(&[("ip", Some("example.org"))]),
        Err(QuotaError::Address)
    );
    assert!(matches!(
        parts(&[("user", Some("a\nb"))]),
        Err(QuotaError::Name(_))
    ));
    for entity in levels() {
        let written = entity
            .parts()
            .into_iter()
            .map(|(kind, name)| (kind.to_owned(), name.map(str::to_owned)))
            .collect::<Vec<_>>();
        assert_eq!(QuotaEntity::from_parts(written), Ok(entity));
    }
}

fn any_entity() -> impl Strategy<Value = QuotaEntity> {
    let name = || {
        prop::sample::select(vec![
            EntityName::Default,
            named("alice"),
            named("app"),
            named("x"),
        ])
    };
    prop_oneof![
        name().prop_map(QuotaEntity::User),
        name().prop_map(QuotaEntity::ClientId),
        (name(), name()).prop_map(|(user, client)| QuotaEntity::UserClientId(user, client)),
    ]
}

proptest! {
    #[test]
    fn the_index_resolves_as_a_walk_over_the_levels(
        changes in prop::collection::vec((any_entity(), prop::option::of(1_u32..100)), 0..30),
    ) {
        let mut quotas = QuotaSet::new();
        for (entity, value) in &changes {
            quotas.alter(entity, &[(KEY, value.map(f64::from))]).unwrap();
        }
        let bytes = postcard::to_allocvec(&quotas).unwrap();
        let restored: QuotaSet = postcard::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&restored, &quotas);
        let expected = levels()
            .iter()
            .find_map(|entity| quotas.get(entity).and_then(|values| values.get(&KEY)).copied());
        let resolved = restored.limit(KEY, "alice", "app").map(|limit| limit.value);
        prop_assert_eq!(resolved, expected);
    }
}
