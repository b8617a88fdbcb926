//! Proxies in front of the server whose word counts that a request came to them over TLS.

use std::net::IpAddr;
use std::str::FromStr;

use http::HeaderMap;

const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// An address, or all that begin as it does: `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{address:?} is no IP address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|bits| *bits <= longest)
                .ok_or_else(|| format!("a prefix has 0 to {longest} bits"))?,
        };
        Ok(Network { address, prefix })
    }
}

impl Network {
    /// Whether it holds the address; an IPv4 address may come as one of IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let ((own, length), (other, other_length)) = (bits(self.address), bits(address));
        let mask = u128::MAX
            .checked_shl(128 - u32::from(self.prefix))
            .unwrap_or(0);
        length == other_length && (own ^ other) & mask == 0
    }
}

/// Whether the peer is one of the proxies, and says that the request came to it over TLS.
pub fn vouches(proxies: &[Network], peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
    let trusted = peer.is_some_and(|peer| proxies.iter().any(|p| p.contains(peer)));
    let mut said = headers.get_all(FORWARDED_PROTO).iter();
    // A client may have sent one of its own, so that only a single one is the proxy's.
    let https = said
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"https"));
    trusted && https && said.next().is_none()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn networks_hold_what_begins_alike() {
        let network = |text: &str| text.parse::<Network>().expect(text);
        let holds = |text: &str, address: &str| {
            network(text).contains(address.parse().expect("an address"))
        };
        assert!(holds("10.0.0.0/8", "10.255.3.4"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("127.0.0.1", "127.0.0.1"));
        assert!(!holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("0.0.0.0/0", "8.8.8.8"));
        assert!(!holds("0.0.0.0/0", "::1"));
        assert!(holds("fd00::/8", "fd12::1"));
        assert!(!holds("fd00::/8", "fe80::1"));
        for bad in ["", "proxy", "10.0.0.0/33", "::1/129", "10.0.0.0/x", "1.2.3"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_vouches() {
        let proxies = ["127.0.0.1".parse().expect("a network")];
        let says = |values: &[&'static str]| {
            let name = HeaderName::from_static(FORWARDED_PROTO);
            let values = values.iter().map(|v| HeaderValue::from_static(v));
            values.map(|v| (name.clone(), v)).collect::<Vec<_>>()
        };
        let asked = |peer: &str, values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for (name, value) in says(values) {
                headers.append(name, value);
            }
            vouches(&proxies, peer.parse().ok(), &headers)
        };
        assert!(asked("127.0.0.1", &["https"]));
        assert!(asked("127.0.0.1", &["HTTPS"]));
        assert!(!asked("127.0.0.1", &["http"]));
        assert!(!asked("127.0.0.1", &[]));
        assert!(!asked("127.0.0.1", &["http", "https"]));
        assert!(!asked("127.0.0.1", &["https", "https"]));
        assert!(!asked("10.0.0.1", &["https"]));
        assert!(!vouches(&[], "127.0.0.1".parse().ok(), &HeaderMap::new()));
    }
}
