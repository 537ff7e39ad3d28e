//! DescribeUserScramCredentials (50) and AlterUserScramCredentials (51).

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::messages::{
    AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse,
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
    alter_user_scram_credentials_request::ScramCredentialUpsertion,
    alter_user_scram_credentials_response::AlterUserScramCredentialsResult,
    describe_user_scram_credentials_response::{
        CredentialInfo, DescribeUserScramCredentialsResult,
    },
};
use palisade_metadata::MetadataCommand;
use palisade_security::{ScramCredential, ScramMechanism, acl::Operation};
use tracing::info;

use super::Context;
use crate::kafka_error::{KafkaError, of_change};

pub(crate) fn describe(
    ctx: &Context,
    request: &DescribeUserScramCredentialsRequest,
) -> DescribeUserScramCredentialsResponse {
    let response = DescribeUserScramCredentialsResponse::default();
    if !ctx.allows_cluster(Operation::Describe) {
        let error = KafkaError::ClusterAuthorizationFailed;
        return response
            .with_error_code(ctx.code(error))
            .with_error_message(Some(error.to_string().into()));
    }
    let scram = &ctx.image.scram;
    let result = |user: &str| {
        let infos: Vec<CredentialInfo> = scram
            .of_user(user)
            .map(|credential| {
                CredentialInfo::default()
                    .with_mechanism(credential.mechanism().code())
                    .with_iterations(i32::try_from(credential.iterations()).unwrap_or(i32::MAX))
            })
            .collect();
        DescribeUserScramCredentialsResult::default()
            .with_user(user.to_owned().into())
            .with_credential_infos(infos)
    };
    let results = match request.users.as_deref() {
        None | Some([]) => scram.users().map(result).collect(),
        Some(asked) => {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for user in asked {
                *counts.entry(user.name.as_str()).or_default() += 1;
            }
            counts
                .into_iter()
                .map(|(user, times)| {
                    let failed = |error: KafkaError, message: String| {
                        DescribeUserScramCredentialsResult::default()
                            .with_user(user.to_owned().into())
                            .with_error_code(ctx.code(error))
                            .with_error_message(Some(message.into()))
                    };
                    if times > 1 {
                        let message = format!("Cannot describe SCRAM credentials for the same user twice in a single request: {user}");
                        failed(KafkaError::DuplicateResource, message)
                    } else if scram.contains(user) {
                        result(user)
                    } else {
                        let message = format!("Attempt to describe a user credential that does not exist: {user}");
                        failed(KafkaError::ResourceNotFound, message)
                    }
                })
                .collect()
        }
    };
    response.with_results(results)
}

/// The changes of one user.
#[derive(Default)]
struct Changes {
    upserts: Vec<ScramCredential>,
    deletions: Vec<ScramMechanism>,
    refused: Option<(KafkaError, String)>,
}

pub(crate) async fn alter(
    ctx: &Context,
    request: AlterUserScramCredentialsRequest,
) -> AlterUserScramCredentialsResponse {
    let forbidden = !ctx.allows_cluster(Operation::Alter);
    let mut users: BTreeMap<String, Changes> = BTreeMap::new();
    let mut touched = BTreeSet::new();
    for deletion in &request.deletions {
        let user = deletion.name.to_string();
        let twice = !touched.insert((user.clone(), deletion.mechanism));
        let changes = users.entry(user).or_default();
        match ScramMechanism::from_code(deletion.mechanism) {
            _ if twice => changes.refused = Some(duplicate()),
            Some(mechanism) => changes.deletions.push(mechanism),
            None => changes.refused = Some(unknown_mechanism()),
        }
    }
    for upsertion in &request.upsertions {
        let user = upsertion.name.to_string();
        let twice = !touched.insert((user.clone(), upsertion.mechanism));
        let changes = users.entry(user).or_default();
        match credential(upsertion) {
            _ if twice => changes.refused = Some(duplicate()),
            Ok(credential) => changes.upserts.push(credential),
            Err(refusal) => changes.refused = Some(refusal),
        }
    }
    let mut results = Vec::with_capacity(users.len());
    for (user, changes) in users {
        let outcome = match changes.refused {
            _ if forbidden => {
                let error = KafkaError::ClusterAuthorizationFailed;
                Err((error, error.to_string()))
            }
            Some(refusal) => Err(refusal),
            None => {
                info!(
                    by = %ctx.session.principal,
                    user,
                    set = changes.upserts.len(),
                    removed = changes.deletions.len(),
                    "changing SCRAM credentials"
                );
                let command = MetadataCommand::AlterScram {
                    user: user.clone(),
                    upserts: changes.upserts,
                    deletions: changes.deletions,
                };
                let changed = ctx.broker.change(&command).await;
                changed.map_err(|error| (of_change(&error), error.to_string()))
            }
        };
        let result = AlterUserScramCredentialsResult::default().with_user(user.into());
        results.push(match outcome {
            Ok(_) => result,
            Err((error, message)) => result
                .with_error_code(ctx.code(error))
                .with_error_message(Some(message.into())),
        });
    }
    AlterUserScramCredentialsResponse::default().with_results(results)
}

fn credential(
    upsertion: &ScramCredentialUpsertion,
) -> Result<ScramCredential, (KafkaError, String)> {
    let mechanism = ScramMechanism::from_code(upsertion.mechanism).ok_or_else(unknown_mechanism)?;
    ScramCredential::from_salted_password(
        mechanism,
        &upsertion.salt,
        upsertion.iterations,
        &upsertion.salted_password,
    )
    .map_err(|error| (KafkaError::UnacceptableCredential, error.to_string()))
}

fn duplicate() -> (KafkaError, String) {
    let message = "A user credential cannot be altered twice in the same request";
    (KafkaError::DuplicateResource, message.to_owned())
}

fn unknown_mechanism() -> (KafkaError, String) {
    (
        KafkaError::UnsupportedSaslMechanism,
        "Unknown SCRAM mechanism".to_owned(),
    )
}
