//! Which bucket a request names by its host.
//!
//! Only hosts below a configured domain name a bucket; all others, addresses and `localhost`
//! among them, are path style. Ports and letter case do not matter.

use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// The domains of virtual-host style.
#[derive(Clone, Debug, Default)]
pub struct Domains(Vec<String>);

impl Domains {
    /// Takes a list of domains, without ports.
    pub fn new(domains: impl IntoIterator<Item = String>) -> Self {
        let clean = |domain: String| domain.trim().trim_matches('.').to_ascii_lowercase();
        let mut domains: Vec<String> = domains
            .into_iter()
            .map(clean)
            .filter(|domain| !domain.is_empty())
            .collect();
        // The longest first: of two that fit, it leaves the shorter bucket name.
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
        Self(domains)
    }

    /// The bucket that `host` names.
    pub fn bucket(&self, host: &str) -> Option<String> {
        let host = without_port(host).to_ascii_lowercase();
        if self.0.contains(&host) {
            // A domain may lie below another.
            return None;
        }
        self.0.iter().find_map(|domain| {
            let bucket = host.strip_suffix(domain.as_str())?.strip_suffix('.')?;
            (!bucket.is_empty()).then(|| bucket.to_owned())
        })
    }
}

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let plain = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            Some(bucket) => plain.with_bucket(bucket),
            None => plain,
        })
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_below_a_domain_name_a_bucket() {
        let domains = Domains::new(["S3.example.com".to_owned(), "example.com".to_owned()]);
        let bucket = |host| domains.bucket(host);
        assert_eq!(bucket("photos.s3.example.com").as_deref(), Some("photos"));
        assert_eq!(
            bucket("Photos.S3.example.com:9000").as_deref(),
            Some("photos")
        );
        assert_eq!(bucket("a.b.s3.example.com").as_deref(), Some("a.b"));
        for host in [
            "s3.example.com:9000",
            "localhost:9000",
            "127.0.0.1:9000",
            "[::1]:9000",
            "photoss3.example.org",
        ] {
            assert_eq!(bucket(host), None, "{host}");
        }
        assert_eq!(Domains::default().bucket("a.s3.example.com"), None);
    }
}
