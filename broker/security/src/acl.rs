//! Access control lists with the meaning that Apache Kafka's `StandardAuthorizer` gives them.
//!
//! A binding says that a principal, from a host, may or may not do an operation on resources of a type whose name
//! matches a pattern. A request is refused when any binding denies it, else allowed when any binding allows it, else
//! refused. Some operations imply others, in bindings that allow only: `Read`, `Write`, `Delete` and `Alter` imply
//! `Describe`; `AlterConfigs` implies `DescribeConfigs`.

mod authorizer;
mod filter;
mod set;
mod types;

pub use authorizer::{Authorizer, Decision};
pub use filter::{AclFilter, FilterError, NamePattern};
pub use set::AclSet;
pub use types::{
    AclBinding, BindingError, CLUSTER_NAME, Operation, PatternType, Permission, ResourceType,
    WILDCARD,
};
