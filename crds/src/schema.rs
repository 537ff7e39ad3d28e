//! Rules that several fields share. CEL has no way to name an expression, so they are named here.

/// No control characters, line breaks among them: the text reaches JAAS lines, certificate subjects and logs.
pub(crate) const NO_CONTROL_RULE: &str = r"!self.matches('[\\x00-\\x1f\\x7f]')";
/// A Kafka principal of a person or program. `System:` is not among them: only the cluster authority makes those.
pub(crate) const PRINCIPAL_RULE: &str = "self.startsWith('User:') && size(self) > 5";

pub(crate) const TOPIC_OPERATIONS_RULE: &str = "self.resource.type != 'Topic' || self.operations.all(o, o in ['All', 'Read', 'Write', 'Create', 'Delete', 'Alter', 'Describe', 'DescribeConfigs', 'AlterConfigs'])";
pub(crate) const GROUP_OPERATIONS_RULE: &str = "self.resource.type != 'Group' || self.operations.all(o, o in ['All', 'Read', 'Delete', 'Describe', 'DescribeConfigs', 'AlterConfigs'])";
pub(crate) const CLUSTER_OPERATIONS_RULE: &str = "self.resource.type != 'Cluster' || self.operations.all(o, o in ['All', 'Create', 'Alter', 'Describe', 'ClusterAction', 'DescribeConfigs', 'AlterConfigs', 'IdempotentWrite'])";
pub(crate) const TRANSACTIONAL_ID_OPERATIONS_RULE: &str = "self.resource.type != 'TransactionalId' || self.operations.all(o, o in ['All', 'Write', 'Describe'])";

/// Keys of labels and annotations that are not the operator's own.
pub(crate) const OWN_KEYS_RULE: &str =
    "!self.exists(key, key.startsWith('palisade.dev/') || key.startsWith('app.kubernetes.io/'))";

/// The seconds of a period, in CEL. Go-style and ISO 8601 periods have the same unit letters once they are in lower case.
fn seconds(period: &str) -> String {
    format!(
        "['w', 'd', 'h', 'm', 's'].map(unit, {period}.lowerAscii().find('[0-9]+' + unit) == '' ? 0 : int({period}.lowerAscii().find('[0-9]+' + unit).replace(unit, '')) * {{'w': 604800, 'd': 86400, 'h': 3600, 'm': 60, 's': 1}}[unit]).sum()"
    )
}

/// A rule that holds when one period is shorter than another.
pub(crate) fn shorter(period: &str, than: &str) -> String {
    format!("{} < {}", seconds(period), seconds(than))
}

/// A rule that holds when one period is as long as another or shorter.
pub(crate) fn not_longer(period: &str, than: &str) -> String {
    format!("{} <= {}", seconds(period), seconds(than))
}

/// A rule that holds for periods of certificates: 1h to 36500d.
pub(crate) fn validity(period: &str) -> String {
    // Within a list, so that the server computes the seconds once.
    format!(
        "[{}].all(total, total >= 3600 && total <= 3153600000)",
        seconds(period)
    )
}
