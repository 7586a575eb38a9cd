//! Where a node is: `host:port` or a URL, and lists of them.

use std::{fmt, str::FromStr};

use super::ClientError;

/// The most endpoints of one list: far past any cluster, and a bound on what a wrong variable can do.
const MAX_ENDPOINTS: usize = 64;

/// The address of a node's client port. Compared as text: two names of one node are two endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// `host:port`, an IPv6 host in brackets.
    authority: String,
}

impl Endpoint {
    /// Reads a comma-separated list, for example `127.0.0.1:7400,http://cache-1:7400`. Spaces around the parts do not
    /// matter, nor does one comma at the end; an endpoint named twice counts once.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if the list is empty or longer than 64, or names one of them wrong.
    pub fn list(text: &str) -> Result<Vec<Self>, ClientError> {
        let text = text.trim();
        let mut endpoints = Vec::new();
        for part in text.strip_suffix(',').unwrap_or(text).split(',') {
            let endpoint: Self = part.parse()?;
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        if endpoints.len() > MAX_ENDPOINTS {
            return Err(ClientError::Invalid(format!(
                "{} endpoints are listed; list at most {MAX_ENDPOINTS}",
                endpoints.len()
            )));
        }
        Ok(endpoints)
    }

    /// The URL for the transport.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// Whether the host means "any address", which is a place to listen on and none to connect to.
    pub(super) fn is_unspecified(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or("", |(host, _)| host);
        matches!(host, "0.0.0.0" | "[::]")
    }
}

impl FromStr for Endpoint {
    type Err = ClientError;

    /// Reads `host:port`, `http://host:port` or the same with a slash at the end.
    fn from_str(text: &str) -> Result<Self, ClientError> {
        let given = text.trim();
        let wrong = |why: &str| {
            ClientError::Invalid(format!(
                "{given:?} is no endpoint: {why}; write it as host:port, for example 127.0.0.1:7400"
            ))
        };
        let rest = match given.split_once("://") {
            None => given,
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(wrong("this release does not speak TLS")),
            Some(_) => return Err(wrong("only http:// URLs are endpoints")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.is_empty() {
            return Err(wrong("it is empty"));
        }
        if authority.contains(['/', '?', '#', '@']) || authority.contains(char::is_whitespace) {
            return Err(wrong("it has more than a host and a port"));
        }
        let Some((host, port)) = authority.rsplit_once(':') else { return Err(wrong("the port is missing")) };
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(wrong("an IPv6 address goes in brackets, as in [::1]:7400"));
        }
        match port.parse::<u16>() {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(wrong("the port is not a number from 1 to 65535")),
        }
        let endpoint = Self { authority: authority.to_owned() };
        match endpoint.url().parse::<tonic::transport::Uri>() {
            Ok(_) => Ok(endpoint),
            Err(error) => Err(wrong(&error.to_string())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_and_urls_are_endpoints() {
        let list = Endpoint::list(" 127.0.0.1:7400, http://cache-0.cache:7400/ ,[::1]:7410,127.0.0.1:7400,")
            .unwrap();
        let texts: Vec<_> = list.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["127.0.0.1:7400", "cache-0.cache:7400", "[::1]:7410"]);
        assert_eq!(list[2].url(), "http://[::1]:7410");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_what_to_write() {
        for (text, part) in [
            ("", "it is empty"),
            ("a:1,,b:2", "it is empty"),
            ("localhost", "the port is missing"),
            (":7400", "the host is missing"),
            ("::1:7400", "brackets"),
            ("h:0", "1 to 65535"),
            ("h:65536", "1 to 65535"),
            ("h:x", "1 to 65535"),
            ("https://h:1", "TLS"),
            ("ftp://h:1", "only http://"),
            ("http://h:1/x", "more than a host"),
            ("u@h:1", "more than a host"),
            ("h h:1", "more than a host"),
        ] {
            let error = Endpoint::list(text).unwrap_err();
            assert!(matches!(error, ClientError::Invalid(_)));
            let sentence = error.to_string();
            assert!(sentence.contains(part) && sentence.contains("host:port"), "{text:?}: {sentence}");
        }
    }
}
