//! `host:port`, as written.

use std::{fmt, str::FromStr};

/// The longest host, in bytes: the longest DNS name.
const MAX_HOST_BYTES: usize = 253;

/// A place to dial: a DNS name or an IP address, as written, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) =
                    rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err("there is no IPv6 address in the brackets");
                }
                (host, rest.strip_prefix(':').ok_or("the port is missing")?)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
                if host.contains(':') {
                    return Err("write an IPv6 address in brackets, as [::1]:7401");
                }
                let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                if host.is_empty() || !host.bytes().all(named) {
                    return Err("the host is neither a DNS name nor an IP address");
                }
                // The dot that ends a full name does not count.
                if host.strip_suffix('.').unwrap_or(host).len() > MAX_HOST_BYTES {
                    return Err("the host is longer than any DNS name");
                }
                (host, port)
            }
        };
        if port.is_empty() {
            return Err("the port is missing");
        }
        match port.parse::<u16>() {
            // Rust reads "+1" as a number; a port list is no place for signs.
            Ok(port) if port != 0 && !text.contains('+') => Ok(Self { host: host.into(), port }),
            _ => Err("the port is not a number from 1 to 65535"),
        }
    }
}
