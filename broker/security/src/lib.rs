//! Who a client is and what it may do, as pure decisions: nothing here opens a socket, reads a file or looks at a clock.
//!
//! * [`scram`] and [`plain`]: the server's side of the SASL exchanges.
//! * [`principal`], [`mapper`] and [`name`]: from a certificate or a user name to one [`Principal`] per connection.
//! * [`acl`]: Kafka's access control lists, deny before allow.
//! * [`quota`]: which limit applies to whom, and how long a client that exceeds it has to wait.

pub mod acl;
pub mod mapper;
pub mod name;
pub mod plain;
pub mod principal;
pub mod quota;
pub mod scram;

pub use mapper::PrincipalMapper;
pub use plain::{PlainMessage, PlainVerifier, parse_plain};
pub use principal::{Principal, PrincipalKind};
pub use scram::{Decoy, ScramCredential, ScramMechanism, ScramServer, ScramStep};
