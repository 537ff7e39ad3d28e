//! The quotas of a cluster and their precedence.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::name::{NameError, check_user_name};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QuotaKey {
    /// Bytes per second produced.
    ProducerByteRate,
    /// Bytes per second fetched.
    ConsumerByteRate,
    /// Percent of one request thread's time.
    RequestPercentage,
    /// Partitions created or deleted per second (KIP-599).
    ControllerMutationRate,
    /// Connections per second from one address.
    ConnectionCreationRate,
}

impl QuotaKey {
    /// Every key.
    pub const ALL: [Self; 5] = [
        Self::ProducerByteRate,
        Self::ConsumerByteRate,
        Self::RequestPercentage,
        Self::ControllerMutationRate,
        Self::ConnectionCreationRate,
    ];

    /// Kafka's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProducerByteRate => "producer_byte_rate",
            Self::ConsumerByteRate => "consumer_byte_rate",
            Self::RequestPercentage => "request_percentage",
            Self::ControllerMutationRate => "controller_mutation_rate",
            Self::ConnectionCreationRate => "connection_creation_rate",
        }
    }

    /// The key with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.as_str() == name)
    }

    /// Whether the value must be a whole number.
    const fn is_whole(self) -> bool {
        matches!(
            self,
            Self::ProducerByteRate | Self::ConsumerByteRate | Self::ConnectionCreationRate
        )
    }
}

/// A name, or the default for every name that has no entry of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EntityName {
    /// Whoever has no entry.
    Default,
    /// This one.
    Named(String),
}

/// Whom a quota is for: users, client ids, both together, or addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QuotaEntity {
    /// Every client of a user together.
    User(EntityName),
    /// Every client with this id together, whoever it is.
    ClientId(EntityName),
    /// The clients of a user with this id.
    UserClientId(EntityName, EntityName),
    /// An address; only [`QuotaKey::ConnectionCreationRate`].
    Ip(EntityName),
}

/// Why a quota is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum QuotaError {
    /// No part, parts that do not go together, or an unknown one.
    #[error("a quota is for a user, a client-id, both, or an ip alone")]
    Entity,
    /// The same part twice.
    #[error("the entity names `{0}` twice")]
    Duplicate(String),
    /// A part that does not exist.
    #[error("`{0}` is not user, client-id or ip")]
    UnknownEntity(String),
    /// Not an address.
    #[error("the ip of a quota is an IP address; names and networks are not resolved")]
    Address,
    /// The name is not usable.
    #[error("the name of a quota entity is not usable: {0}")]
    Name(#[from] NameError),
    /// A limit that does not exist.
    #[error("there is no quota `{0}`")]
    UnknownKey(String),
    /// The limit is for another kind of entity.
    #[error(
        "{key} does not apply to this entity: connection_creation_rate is for ip, everything else for user and client-id",
        key = .0.as_str()
    )]
    WrongKey(QuotaKey),
    /// Zero, negative or not a number.
    #[error("{} must be greater than 0", .0.as_str())]
    NotPositive(QuotaKey),
    /// A fraction where Kafka has an integer.
    #[error("{} must be a whole number", .0.as_str())]
    Fraction(QuotaKey),
}

impl QuotaEntity {
    /// An entity from the parts of a request: `(type, name)`, where no name is the default.
    ///
    /// # Errors
    /// [`QuotaError`] when the parts do not make an entity.
    pub fn from_parts(
        parts: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<Self, QuotaError> {
        let (mut user, mut client, mut ip) = (None, None, None);
        for (kind, name) in parts {
            let name = name.map_or(EntityName::Default, EntityName::Named);
            let slot = match kind.as_str() {
                "user" => &mut user,
                "client-id" => &mut client,
                "ip" => &mut ip,
                _ => return Err(QuotaError::UnknownEntity(kind)),
            };
            if slot.replace(name).is_some() {
                return Err(QuotaError::Duplicate(kind));
            }
        }
        let entity = match (user, client, ip) {
            (Some(user), None, None) => Self::User(user),
            (None, Some(client), None) => Self::ClientId(client),
            (Some(user), Some(client), None) => Self::UserClientId(user, client),
            (None, None, Some(ip)) => Self::Ip(ip),
            _ => return Err(QuotaError::Entity),
        };
        entity.check()?;
        Ok(entity)
    }

    /// The parts as a request has them: `(type, name)`, where no name is the default.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, Option<&str>)> {
        fn name(entity: &EntityName) -> Option<&str> {
            match entity {
                EntityName::Default => None,
                EntityName::Named(name) => Some(name),
            }
        }
        match self {
            Self::User(user) => vec![("user", name(user))],
            Self::ClientId(client) => vec![("client-id", name(client))],
            Self::UserClientId(user, client) => {
                vec![("user", name(user)), ("client-id", name(client))]
            }
            Self::Ip(ip) => vec![("ip", name(ip))],
        }
    }

    fn check(&self) -> Result<(), QuotaError> {
        for (kind, name) in self.parts() {
            let Some(name) = name else { continue };
            check_user_name(name)?;
            if kind == "ip" && name.parse::<IpAddr>().is_err() {
                return Err(QuotaError::Address);
            }
        }
        Ok(())
    }

    /// Checks that `value` can be this entity's `key`.
    ///
    /// # Errors
    /// [`QuotaError`] that says what is wrong.
    pub fn check_value(&self, key: QuotaKey, value: f64) -> Result<(), QuotaError> {
        let for_ip = key == QuotaKey::ConnectionCreationRate;
        if for_ip != matches!(self, Self::Ip(_)) {
            return Err(QuotaError::WrongKey(key));
        }
        if !value.is_finite() || value <= 0.0 {
            return Err(QuotaError::NotPositive(key));
        }
        if key.is_whole() && value.fract() != 0.0 {
            return Err(QuotaError::Fraction(key));
        }
        Ok(())
    }
}

/// Who shares a limit: the meter that a client's use is counted on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket {
    /// The user, unless the limit is by client id only.
    pub user: Option<String>,
    /// The client id, unless the limit is by user only.
    pub client_id: Option<String>,
}

/// A limit that applies to a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// Units per second (percent for [`QuotaKey::RequestPercentage`]).
    pub value: f64,
    /// Who shares it.
    pub bucket: Bucket,
}

/// The quotas of a cluster. Serialised as the sorted list of them; the index is rebuilt when it is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Entities", into = "Entities")]
pub struct QuotaSet {
    entities: Entities,
    index: HashMap<QuotaKey, Table>,
}

type Entities = BTreeMap<QuotaEntity, BTreeMap<QuotaKey, f64>>;

/// The limits of one key, by how a client finds its own.
#[derive(Clone, Debug, Default, PartialEq)]
struct Table {
    users: HashMap<String, Clients>,
    default_user: Clients,
    any_user: Clients,
    ips: HashMap<IpAddr, f64>,
    default_ip: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Clients {
    /// The limit of all clients together; unused where no user is given.
    together: Option<f64>,
    by_id: HashMap<String, f64>,
    default_id: Option<f64>,
}

impl Clients {
    fn of(&self, client_id: &str) -> Option<f64> {
        self.by_id.get(client_id).copied().or(self.default_id)
    }

    fn set(&mut self, client: &EntityName, value: f64) {
        match client {
            EntityName::Default => self.default_id = Some(value),
            EntityName::Named(id) => {
                self.by_id.insert(id.clone(), value);
            }
        }
    }
}

impl Table {
    fn user(&mut self, user: &EntityName) -> &mut Clients {
        match user {
            EntityName::Default => &mut self.default_user,
            EntityName::Named(name) => self.users.entry(name.clone()).or_default(),
        }
    }

    fn set(&mut self, entity: &QuotaEntity, value: f64) {
        match entity {
            QuotaEntity::User(user) => self.user(user).together = Some(value),
            QuotaEntity::UserClientId(user, client) => self.user(user).set(client, value),
            QuotaEntity::ClientId(client) => self.any_user.set(client, value),
            QuotaEntity::Ip(EntityName::Default) => self.default_ip = Some(value),
            QuotaEntity::Ip(EntityName::Named(address)) => {
                if let Ok(address) = address.parse::<IpAddr>() {
                    self.ips.insert(address.to_canonical(), value);
                }
            }
        }
    }

    /// Kafka's order: user and client id, user and default id, user; the same for the default user; client id, default id.
    fn resolve(&self, user: &str, client_id: &str) -> Option<Limit> {
        let limit = |value, by_user: bool, by_client: bool| Limit {
            value,
            bucket: Bucket {
                user: by_user.then(|| user.to_owned()),
                client_id: by_client.then(|| client_id.to_owned()),
            },
        };
        for clients in [self.users.get(user), Some(&self.default_user)]
            .into_iter()
            .flatten()
        {
            if let Some(value) = clients.of(client_id) {
                return Some(limit(value, true, true));
            }
            if let Some(value) = clients.together {
                return Some(limit(value, true, false));
            }
        }
        self.any_user
            .of(client_id)
            .map(|value| limit(value, false, true))
    }
}

impl QuotaSet {
    /// No quotas.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets (`Some`) or removes (`None`) values of an entity, all or nothing.
    ///
    /// # Errors
    /// [`QuotaError`] for the first value that cannot be; nothing has changed then.
    pub fn alter(
        &mut self,
        entity: &QuotaEntity,
        changes: &[(QuotaKey, Option<f64>)],
    ) -> Result<(), QuotaError> {
        entity.check()?;
        for (key, value) in changes {
            if let Some(value) = value {
                entity.check_value(*key, *value)?;
            }
        }
        let values = self.entities.entry(entity.clone()).or_default();
        for (key, value) in changes {
            match value {
                Some(value) => values.insert(*key, *value),
                None => values.remove(key),
            };
        }
        if values.is_empty() {
            self.entities.remove(entity);
        }
        self.index = index(&self.entities);
        Ok(())
    }

    /// Every entity with its values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&QuotaEntity, &BTreeMap<QuotaKey, f64>)> {
        self.entities.iter()
    }

    /// The values of an entity.
    #[must_use]
    pub fn get(&self, entity: &QuotaEntity) -> Option<&BTreeMap<QuotaKey, f64>> {
        self.entities.get(entity)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entities.is_empty()
    }

    /// The limit of `key` for a client of `user` (the principal's name) that calls itself `client_id`; `None`: no limit.
    #[must_use]
    pub fn limit(&self, key: QuotaKey, user: &str, client_id: &str) -> Option<Limit> {
        self.index.get(&key)?.resolve(user, client_id)
    }

    /// Connections per second that an address may open; `None`: no limit.
    #[must_use]
    pub fn connection_rate(&self, address: IpAddr) -> Option<f64> {
        let table = self.index.get(&QuotaKey::ConnectionCreationRate)?;
        table
            .ips
            .get(&address.to_canonical())
            .copied()
            .or(table.default_ip)
    }
}

fn index(entities: &Entities) -> HashMap<QuotaKey, Table> {
    let mut index: HashMap<QuotaKey, Table> = HashMap::new();
    for (entity, values) in entities {
        for (key, value) in values {
            index.entry(*key).or_default().set(entity, *value);
        }
    }
    index
}

impl From<Entities> for QuotaSet {
    fn from(entities: Entities) -> Self {
        let index = index(&entities);
        Self { entities, index }
    }
}

impl From<QuotaSet> for Entities {
    fn from(set: QuotaSet) -> Self {
        set.entities
    }
}

#[cfg(test)]
mod tests;
