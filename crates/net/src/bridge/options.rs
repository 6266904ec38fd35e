//! Whether a bridge network's options have values that mean something. One that nobody knows is nobody's business, as in Docker.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::option;
use crate::error::{NetError, Result};

const FLAGS: [&str; 4] = [option::ICC, option::MASQUERADE, option::INHIBIT_IPV4, option::DEFAULT_BRIDGE];

/// In Docker's words, with what Go's parser says in brackets.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<()> {
    let refused = |key: &str, value: &str, why: &str| {
        Err(NetError::Invalid(format!("failed to parse {key} value: {value} ({why})")))
    };
    for (key, value) in options {
        match key.as_str() {
            flag if FLAGS.contains(&flag) && parse_flag(value).is_none() => {
                return refused(key, value, &format!("strconv.ParseBool: parsing {value:?}: invalid syntax"));
            }
            option::MTU if value.parse::<i64>().is_err() => {
                return refused(key, value, &format!("strconv.Atoi: parsing {value:?}: invalid syntax"));
            }
            option::MTU if value.parse::<i64>().is_ok_and(|mtu| mtu < 0) => {
                return Err(NetError::Invalid(format!("invalid MTU number: {value}")));
            }
            option::HOST_BINDING if value.parse::<IpAddr>().is_err() => return refused(key, value, "nil ip"),
            // The default must not be what somebody gets who asked for a closed door.
            mode if option::GATEWAY_MODES.contains(&mode) && !matches!(value.as_str(), "" | "nat") => {
                return Err(NetError::NotImplemented(format!("{key}={value} is not served yet: only nat is")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Go's `strconv.ParseBool`.
pub(super) fn parse_flag(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_bridge_are_refused_in_dockers_words() {
        let said = |key: &str, value: &str| {
            check(&[(key.to_owned(), value.to_owned())].into()).err().map(|error| error.to_string())
        };
        let icc = "failed to parse com.docker.network.bridge.enable_icc value: maybe (strconv.ParseBool: parsing \"maybe\": \
                   invalid syntax)";
        assert_eq!(said(option::ICC, "maybe").as_deref(), Some(icc));
        let mtu =
            "failed to parse com.docker.network.driver.mtu value: x (strconv.Atoi: parsing \"x\": invalid syntax)";
        assert_eq!(said(option::MTU, "x").as_deref(), Some(mtu));
        assert_eq!(said(option::MTU, "-1").as_deref(), Some("invalid MTU number: -1"));
        let binding = "failed to parse com.docker.network.bridge.host_binding_ipv4 value: here (nil ip)";
        assert_eq!(said(option::HOST_BINDING, "here").as_deref(), Some(binding));
        let mode = "com.docker.network.bridge.gateway_mode_ipv4=isolated is not served yet: only nat is";
        assert_eq!(said(option::GATEWAY_MODES[0], "isolated").as_deref(), Some(mode));
        for (key, value) in
            [(option::ICC, "F"), (option::MTU, "1400"), (option::GATEWAY_MODES[1], "nat"), ("com.example", "?")]
        {
            assert_eq!(said(key, value), None);
        }
    }
}
