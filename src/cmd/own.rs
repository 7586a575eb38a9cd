//! The node that this machine or this pod runs, as `prestop` and `healthcheck` find it: by the settings that `serve` was given.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use super::Failure;
use crate::config::RawConfig;

/// The settings: the file's, and over them the flags and variables. A file that cannot be read is passed over, and the sentence that says so
/// is returned: the node runs on what it held before, and whoever asks has to act all the same.
pub(super) fn settings(file: Option<&Path>, flags: RawConfig) -> (RawConfig, Option<String>) {
    match file.map(RawConfig::from_file).transpose() {
        Ok(file) => (file.unwrap_or_default().merge(flags), None),
        Err(error) => (flags, Some(format!("{error}; it is passed over"))),
    }
}

/// Where to connect to what listens at `listening`, the value of a setting; by default at a port of every address.
///
/// # Errors
/// `Usage` if it is no address and port.
pub(super) fn address(flag: &str, listening: Option<&str>, port: u16) -> Result<SocketAddr, Failure> {
    let mut address: SocketAddr = match listening {
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Some(text) => text.parse().map_err(|_| {
            Failure::Usage(format!("--{flag}: {text:?} is not address:port; write it as 127.0.0.1:{port}"))
        })?,
    };
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_here() {
        for (listening, expected) in [
            (None, "127.0.0.1:7400"),
            (Some("0.0.0.0:9000"), "127.0.0.1:9000"),
            (Some("[::]:9000"), "[::1]:9000"),
            (Some("10.1.2.3:7400"), "10.1.2.3:7400"),
        ] {
            assert_eq!(address("client-addr", listening, 7400).unwrap().to_string(), expected);
        }
        let error = address("http-addr", Some("7402"), 7402).unwrap_err();
        assert!(
            matches!(&error, Failure::Usage(why) if why.contains("--http-addr") && why.contains("127.0.0.1:7402"))
        );
    }

    #[test]
    fn flags_win_over_the_file_and_a_broken_file_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("larder.toml");
        let flags = || RawConfig { slot: Some("2".into()), ..RawConfig::default() };
        std::fs::write(&path, "slot = 1\nclient_addr = \"0.0.0.0:9000\"\n").unwrap();
        let (found, wrong) = settings(Some(&path), flags());
        assert_eq!((found.slot.as_deref(), found.client_addr.as_deref()), (Some("2"), Some("0.0.0.0:9000")));
        assert_eq!(wrong, None);
        std::fs::write(&path, "slto = 1").unwrap();
        let (found, wrong) = settings(Some(&path), flags());
        assert_eq!(found, flags());
        assert!(wrong.unwrap().contains("slto"));
        assert_eq!(settings(None, flags()), (flags(), None));
    }
}
