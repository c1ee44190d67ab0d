//! TLS towards the REST APIs of members (contract: REST API §11 "Client auth", CLI).

use crate::{
    config::Config,
    tls::{
        client::{Check, Tls},
        files::Identity,
        server::VerifyClient,
    },
};

/// Members among each other. As with Patroni they verify no name, because a member is reached by an address that its
/// certificate need not hold; and no authority either, unless they show certificates to each other and name one.
#[must_use]
pub fn between_members(config: &Config) -> Tls {
    let cacert = config.ctl.cacert.clone();
    Tls {
        check: match (&config.ctl.identity, &cacert) {
            (Some(_), Some(_)) => Check::Authority,
            _ => Check::Nothing,
        },
        cacert,
        identity: identity(config),
    }
}

/// The command line.
#[must_use]
pub fn of_command_line(config: &Config, insecure: bool) -> Tls {
    let between = between_members(config);
    if insecure || config.ctl.insecure {
        return between;
    }
    Tls {
        check: Check::Whole,
        ..between
    }
}

/// Whoever asks the member on this host: by an address that no certificate has.
#[must_use]
pub fn towards_this_host(config: &Config) -> Tls {
    Tls {
        check: Check::Nothing,
        ..between_members(config)
    }
}

/// Where everybody has to show a certificate, that of the REST API is better than none.
fn identity(config: &Config) -> Option<Identity> {
    let tls = config.restapi.tls.as_ref();
    let own = tls.filter(|tls| tls.verify_client == VerifyClient::Required);
    config
        .ctl
        .identity
        .clone()
        .or_else(|| own.map(|tls| tls.identity.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FixedHost, MapEnv};

    fn config(more: &[(&str, &str)]) -> Config {
        let base = [("HOWDAH_NAME", "pg1"), ("POSTGRES_PASSWORD", "secret")];
        let all: Vec<_> = base.iter().chain(more).copied().collect();
        let loaded = Config::load(&MapEnv::new(&all), &FixedHost::default());
        loaded.expect("no mistakes").config
    }

    const CA: (&str, &str) = ("HOWDAH_CTL_CACERT", "/ca");
    const CERT: (&str, &str) = ("HOWDAH_CTL_CERTFILE", "/client");
    const SERVER: (&str, &str) = ("HOWDAH_RESTAPI_CERTFILE", "/server");

    #[test]
    fn people_check_everything_unless_they_say_no_and_members_no_names() {
        for (vars, insecure, members, people) in [
            (&[][..], false, Check::Nothing, Check::Whole),
            (&[CA], false, Check::Nothing, Check::Whole),
            (&[CA, CERT], false, Check::Authority, Check::Whole),
            (&[CA, CERT], true, Check::Authority, Check::Authority),
            (&[CA], true, Check::Nothing, Check::Nothing),
            (
                &[("HOWDAH_CTL_INSECURE", "on")],
                false,
                Check::Nothing,
                Check::Nothing,
            ),
        ] {
            let config = config(vars);
            assert_eq!(between_members(&config).check, members, "{vars:?}");
            assert_eq!(
                of_command_line(&config, insecure).check,
                people,
                "{vars:?} {insecure}"
            );
            assert_eq!(towards_this_host(&config).check, Check::Nothing);
        }
    }

    #[test]
    fn the_certificate_of_the_api_is_shown_only_where_nobody_gets_in_without() {
        let shown = |vars: &[(&str, &str)]| {
            between_members(&config(vars))
                .identity
                .map(|identity| identity.cert)
        };
        let required = ("HOWDAH_RESTAPI_VERIFY_CLIENT", "required");
        let optional = ("HOWDAH_RESTAPI_VERIFY_CLIENT", "optional");
        let authority = ("HOWDAH_RESTAPI_CAFILE", "/ca");
        assert_eq!(shown(&[SERVER]), None);
        assert_eq!(
            shown(&[SERVER, authority, optional]),
            None,
            "one that is not known would be refused"
        );
        assert_eq!(shown(&[SERVER, authority, required]), Some("/server".into()));
        assert_eq!(
            shown(&[SERVER, authority, required, CERT]),
            Some("/client".into())
        );
    }
}
