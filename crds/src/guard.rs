//! The admission rules once more, inside a reconciler: an object that was stored before a rule existed is caught too.
//!
//! The rules are not written twice: the CEL expressions of the definitions are evaluated here as the API server evaluates them, on
//! the object alone. Rules that compare with the former object have no meaning here and do not run.

use std::{fmt, sync::OnceLock};

use kube::{
    CustomResourceExt,
    core::cel::{CompiledSchema, compile_schema, validate_compiled},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Acl, CertRotation, Quota, SecureCluster, Topic, User,
    yaml::{definition, schema_of},
};

/// What is wrong with an object: `field: what to write instead`, one entry for each rule that refuses it, never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violations(Vec<String>);

impl Violations {
    /// The entries.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// A kind whose rules can be checked here.
pub trait Guarded: CustomResourceExt + Serialize {
    /// The rules of the kind, compiled once.
    #[doc(hidden)]
    fn compiled() -> &'static Result<CompiledSchema, String>;
}

macro_rules! guarded {
    ($($kind:ident)*) => { $(
        impl Guarded for $kind {
            fn compiled() -> &'static Result<CompiledSchema, String> {
                static COMPILED: OnceLock<Result<CompiledSchema, String>> = OnceLock::new();
                COMPILED.get_or_init(compile::<Self>)
            }
        }
    )* };
}

guarded!(Acl CertRotation Quota SecureCluster Topic User);

fn compile<T: CustomResourceExt>() -> Result<CompiledSchema, String> {
    let definition = definition::<T>().map_err(|error| error.to_string())?;
    schema_of(&definition)
        .map(compile_schema)
        .ok_or_else(|| format!("the definition of {} has no schema", T::crd_name()))
}

/// Checks an object against the admission rules of its kind.
///
/// # Errors
/// Every rule that refuses it, or why the rules could not be evaluated.
pub fn check<T: Guarded>(object: &T) -> Result<(), Violations> {
    check_change(object, None)
}

/// Checks an object, and with `former` the change from it, against the admission rules of its kind.
///
/// # Errors
/// Every rule that refuses it, or why the rules could not be evaluated.
pub fn check_change<T: Guarded>(object: &T, former: Option<&T>) -> Result<(), Violations> {
    let json = |object: &T| {
        serde_json::to_value(object).map_err(|error| Violations(vec![error.to_string()]))
    };
    check_json::<T>(&json(object)?, former.map(json).transpose()?.as_ref())
}

/// The same for objects as they were written, which may not even have the types that the kind asks for.
///
/// # Errors
/// Every rule that refuses it, or why the rules could not be evaluated.
pub fn check_json<T: Guarded>(object: &Value, former: Option<&Value>) -> Result<(), Violations> {
    let rules = T::compiled()
        .as_ref()
        .map_err(|problem| Violations(vec![problem.clone()]))?;
    validate_compiled(rules, object, former)
        .map_err(|errors| Violations(errors.as_slice().iter().map(ToString::to_string).collect()))
}
