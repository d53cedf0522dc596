//! What is known of registries by their names.

/// Account and region of a registry of Amazon ECR, of any partition: `ACCOUNT.dkr.ecr[-fips].REGION.…`, and, where IPv6 is spoken,
/// too, `ACCOUNT.dkr-ecr[-fips].REGION.on.aws` (<https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-requests.html>).
pub(crate) fn of_ecr(registry: &str) -> Option<(&str, &str)> {
    let mut labels = without_port(registry).split('.');
    let account = labels.next().filter(|account| account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()))?;
    let is_ecr = match labels.next()? {
        "dkr" => matches!(labels.next()?, "ecr" | "ecr-fips"),
        "dkr-ecr" | "dkr-ecr-fips" => true,
        _ => false,
    };
    is_ecr.then(|| labels.next()).flatten().map(|region| (account, region))
}

/// GitHub takes pieces of blobs of at most 4 MiB, and Google none
/// (<https://cloud.google.com/artifact-registry/docs/docker/troubleshoot>): there a blob goes as one, whatever its size.
pub(crate) fn takes_no_pieces(registry: &str) -> bool {
    let host = without_port(registry);
    host == "ghcr.io" || host == "gcr.io" || host.ends_with(".gcr.io") || host.ends_with(".pkg.dev")
}

fn without_port(registry: &str) -> &str {
    registry.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_tell_account_and_region() {
        for (host, told) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com:443", Some("eu-west-1")),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov", Some("us-iso-east-1")),
            ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", Some("eusc-de-east-1")),
            ("123456789012.dkr-ecr.us-west-2.on.aws", Some("us-west-2")),
            ("123456789012.dkr-ecr-fips.us-west-2.on.aws", Some("us-west-2")),
            ("public.ecr.aws", None),
            ("123456789012.dkr.other.eu-west-1.amazonaws.com", None),
            ("127.0.0.1:5000", None),
        ] {
            assert_eq!(of_ecr(host), told.map(|region| ("123456789012", region)), "{host}");
        }
    }

    #[test]
    fn some_take_blobs_as_one() {
        assert!(["ghcr.io", "eu.gcr.io", "europe-docker.pkg.dev:443"].into_iter().all(takes_no_pieces));
        assert!(!["quay.io", "gcr.io.example", "localhost:5000"].into_iter().any(takes_no_pieces));
    }
}
