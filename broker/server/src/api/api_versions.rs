//! ApiVersions (18): what this broker speaks. Needs no authentication.

use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, api_versions_response::ApiVersion,
};

use crate::codec::versions::{Api, SUPPORTED, supported};

const INVALID_REQUEST: i16 = 42;
const UNSUPPORTED_VERSION: i16 = 35;

/// Answers a request of a known version.
pub(crate) fn answer(request: &ApiVersionsRequest, version: i16) -> ApiVersionsResponse {
    let named = is_software_name(&request.client_software_name)
        && is_software_name(&request.client_software_version);
    if version >= 3 && !named {
        return ApiVersionsResponse::default().with_error_code(INVALID_REQUEST);
    }
    ApiVersionsResponse::default().with_api_keys(SUPPORTED.iter().map(entry).collect())
}

/// The answer to a version from the future, in version 0: the client asks again with what it finds here (KIP-511).
pub(crate) fn unsupported() -> ApiVersionsResponse {
    ApiVersionsResponse::default()
        .with_error_code(UNSUPPORTED_VERSION)
        .with_api_keys(
            supported(ApiKey::ApiVersions)
                .map(entry)
                .into_iter()
                .collect(),
        )
}

fn entry(api: &Api) -> ApiVersion {
    ApiVersion::default()
        .with_api_key(api.key as i16)
        .with_min_version(api.advertise_min)
        .with_max_version(api.max)
}

/// Kafka's rule for client software names and versions.
fn is_software_name(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_alphanumeric();
    let inner = |c: u8| edge(c) || c == b'-' || c == b'.';
    let bytes = text.as_bytes();
    bytes.iter().all(|c| inner(*c))
        && bytes.first().is_some_and(|c| edge(*c))
        && bytes.last().is_some_and(|c| edge(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_names_follow_kafkas_rule() {
        for (name, right) in [
            ("librdkafka", true),
            ("apache-kafka-java", true),
            ("4.3.1", true),
            ("", false),
            ("-x", false),
            ("a b", false),
        ] {
            assert_eq!(is_software_name(name), right, "{name}");
        }
        let nameless = ApiVersionsRequest::default();
        assert_eq!(answer(&nameless, 2).error_code, 0);
        assert_eq!(answer(&nameless, 3).error_code, INVALID_REQUEST);
    }

    #[test]
    fn produce_is_advertised_from_version_0_for_librdkafka() {
        let response = answer(&ApiVersionsRequest::default(), 0);
        let produce = response.api_keys.iter().find(|api| api.api_key == 0);
        assert_eq!(
            produce.map(|api| (api.min_version, api.max_version)),
            Some((0, 13))
        );
        assert!(
            response.api_keys.iter().all(|api| api.api_key != 68),
            "KIP-848 is not served"
        );
    }
}
