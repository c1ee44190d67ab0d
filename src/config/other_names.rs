//! Names other than `HOWDAH_X` and `PATRONI_X`: those of the official image, of Spilo, and Patroni's older ones.

use super::vars::{self, Var};

/// Prefix of the canonical names.
pub(super) const OURS: &str = "HOWDAH_";
/// Prefix of a leaf of the document by its path, with two underscores between levels.
pub(super) const LEAF: &str = "HOWDAH__";
/// Prefix of Patroni's names; the rest is the same.
pub(super) const PATRONI: &str = "PATRONI_";

/// How the value of another name becomes the setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// As it is.
    Same,
    /// It is only the port of an address to listen on; the host keeps its default.
    Port,
    /// It is the folder above.
    Below(&'static str),
}

/// Another name of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OtherName {
    pub(super) name: String,
    pub(super) via: Via,
    /// Images set it for their own sake: another value under a stronger name wins without being a conflict.
    pub(super) weak: bool,
}

/// (name, suffix of the setting, how, weak)
#[rustfmt::skip]
const OTHER_NAMES: &[(&str, &str, Via, bool)] = &[
    // The official image.
    ("POSTGRES_PASSWORD", "SUPERUSER_PASSWORD", Via::Same, false),
    ("POSTGRES_USER", "SUPERUSER_USERNAME", Via::Same, false),
    ("POSTGRES_DB", "BOOTSTRAP_DATABASE", Via::Same, false),
    ("POSTGRES_INITDB_ARGS", "BOOTSTRAP_INITDB", Via::Same, false),
    ("PGDATA", "POSTGRESQL_DATA_DIR", Via::Same, true),
    // Spilo.
    ("PGROOT", "POSTGRESQL_DATA_DIR", Via::Below("data"), true),
    ("SPILO_CONFIGURATION", "CONFIGURATION", Via::Same, false),
    ("SCOPE", "SCOPE", Via::Same, true),
    ("NAMESPACE", "NAMESPACE", Via::Same, true),
    ("PGUSER_SUPERUSER", "SUPERUSER_USERNAME", Via::Same, false),
    ("PGPASSWORD_SUPERUSER", "SUPERUSER_PASSWORD", Via::Same, false),
    ("PGUSER_STANDBY", "REPLICATION_USERNAME", Via::Same, false),
    ("PGPASSWORD_STANDBY", "REPLICATION_PASSWORD", Via::Same, false),
    ("PGPORT", "POSTGRESQL_LISTEN", Via::Port, true),
    ("APIPORT", "RESTAPI_LISTEN", Via::Port, true),
    ("DCS_ENABLE_KUBERNETES_API", "KUBERNETES_ENABLED", Via::Same, false),
    ("POD_NAMESPACE", "KUBERNETES_NAMESPACE", Via::Same, true),
    ("POD_IP", "KUBERNETES_POD_IP", Via::Same, true),
    ("PG_CONNECT_ADDRESS", "POSTGRESQL_CONNECT_ADDRESS", Via::Same, false),
    ("RESTAPI_CONNECT_ADDRESS", "RESTAPI_CONNECT_ADDRESS", Via::Same, false),
    // Patroni's older names.
    ("PATRONI_LOGLEVEL", "LOG_LEVEL", Via::Same, false),
    ("PATRONI_LOGFORMAT", "LOG_FORMAT", Via::Same, false),
    ("PATRONI_LOG_DATEFMT", "LOG_DATEFORMAT", Via::Same, false),
];

/// Variables of the project's own processes among each other; not settings.
const INTERNAL: &[&str] = &["ADOPT", "INIT", "IMAGE", "ORDINARY"];

/// Stores and extensions this build does not have: the section's name in variables and in a document.
pub(super) const OTHER_STORES: &[(&str, &str)] =
    &[("EXHIBITOR", "Exhibitor as DCS is"), ("RAFT", "Raft as DCS is")];

/// Spilo's names, without a prefix, that choose such a store. Only these: Kubernetes sets many that look alike.
pub(super) const OTHER_STORE_VARS: &[(&str, &str)] = &[("EXHIBITOR_HOSTS", "Exhibitor as DCS is")];

/// Variables of other images that people may expect to work, and what to do instead.
pub(super) const WITHOUT_EFFECT: &[(&str, &str)] = &[
    (
        "POSTGRES_HOST_AUTH_METHOD",
        "has no effect; give the lines of pg_hba.conf with HOWDAH_POSTGRESQL_PG_HBA",
    ),
    (
        "POSTGRES_INITDB_WALDIR",
        "has no effect; use HOWDAH_BOOTSTRAP_INITDB={waldir: ...}",
    ),
];

/// Spilo's names of what it does and this build does not: archiving and backups, TLS, cron, roles, cloud providers.
#[rustfmt::skip]
const OF_SPILO: &[&str] = &[
    "PGVERSION", "INITDB_LOCALE", "ALLOW_NOSSL", "CALLBACK_SCRIPT", "CRONTAB", "HUMAN_ROLE", "USE_ADMIN",
    "PGUSER_ADMIN", "PGPASSWORD_ADMIN", "PAM_OAUTH2", "SPILO_PROVIDER", "ENABLE_PG_MON", "BGMON_LISTEN_IP",
    "USE_OLD_LOCALES", "ENABLE_WAL_PATH_COMPAT", "USE_PAUSE_AT_RECOVERY_TARGET", "BACKUP_SCHEDULE",
    "BACKUP_NUM_TO_RETAIN", "SSL_CA", "SSL_CA_FILE", "SSL_CERTIFICATE", "SSL_CERTIFICATE_FILE", "SSL_CRL",
    "SSL_CRL_FILE", "SSL_PRIVATE_KEY", "SSL_PRIVATE_KEY_FILE", "SSL_TEST_RELOAD",
];

/// Beginnings of more of them.
const OF_SPILO_PREFIXES: &[&str] = &[
    "WAL_",
    "WALE_",
    "WALG_",
    "USE_WAL",
    "SSL_RESTAPI_",
    "LOG_S3_",
    "CLONE_",
    "STANDBY_",
    "PGBOUNCER_",
];

/// Spilo's variables that choose what a new cluster is made from, or follows. To go on without would make an empty
/// cluster where a copy was asked for.
pub(super) fn chooses_a_source(name: &str) -> bool {
    let store = name
        .strip_prefix("STANDBY_WAL")
        .or_else(|| name.strip_prefix("CLONE_WAL"));
    matches!(
        name,
        "CLONE_METHOD" | "STANDBY_HOST" | "STANDBY_CLUSTER" | "STANDBY_METHOD"
    ) || store.is_some_and(|rest| rest.ends_with("_BUCKET") || rest.ends_with("_PREFIX"))
        && !name.contains("_SCOPE_")
}

/// Whether a variable is one of Spilo's that nobody reads here.
pub(super) fn is_of_spilo(name: &str) -> bool {
    let prefixed = OF_SPILO_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    (prefixed || OF_SPILO.contains(&name)) && !chooses_a_source(name)
}

/// All names of a setting, the strongest first.
pub(super) fn names(var: &Var) -> Vec<OtherName> {
    let strong = |name: String| OtherName {
        name,
        via: Via::Same,
        weak: false,
    };
    let mut names = vec![strong(var.name()), strong(format!("{PATRONI}{}", var.suffix))];
    if let Some(rest) = var.suffix.strip_prefix("ETCD3_") {
        // etcd's older protocol is gone; who names it means the same servers.
        names.extend([
            strong(format!("{OURS}ETCD_{rest}")),
            strong(format!("{PATRONI}ETCD_{rest}")),
            strong(format!("ETCD3_{rest}")),
            strong(format!("ETCD_{rest}")),
        ]);
    }
    if var.suffix.starts_with("KUBERNETES_") {
        // Spilo's; what Kubernetes itself sets (`KUBERNETES_SERVICE_HOST`, `KUBERNETES_PORT`) is no setting.
        names.push(strong(var.suffix.to_owned()));
    }
    let of_stores = ["CONSUL_", "ZOOKEEPER_"];
    // Spilo's; `CONSUL_PORT=tcp://…` is what Kubernetes tells about a service of that name.
    if of_stores.iter().any(|store| var.suffix.starts_with(store)) && !var.suffix.ends_with("_PORT") {
        names.push(strong(var.suffix.to_owned()));
    }
    let others = OTHER_NAMES
        .iter()
        .filter(|(_, suffix, _, _)| *suffix == var.suffix);
    names.extend(others.map(|(name, _, via, weak)| OtherName {
        name: (*name).to_owned(),
        via: *via,
        weak: *weak,
    }));
    names
}

/// What a variable with one of the two prefixes is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// A setting, or its `_FILE` form; or not our business.
    Yes,
    /// It belongs to a store this build does not have.
    Unsupported(&'static str),
    /// Nobody reads it.
    No,
}

/// Classifies a variable by its full name and value.
pub(super) fn classify(name: &str, value: &str) -> Known {
    let Some(suffix) = name.strip_prefix(OURS).or_else(|| name.strip_prefix(PATRONI)) else {
        return Known::Yes;
    };
    let is_name = |name: &str| vars::all().any(|var| names(var).iter().any(|other| other.name == name));
    let internal = name.starts_with(OURS) && INTERNAL.contains(&suffix);
    if internal
        || is_service_link(suffix, value)
        || is_name(name)
        || name.strip_suffix("_FILE").is_some_and(is_name)
    {
        return Known::Yes;
    }
    let section = OTHER_STORES.iter().find(|(section, _)| {
        suffix
            .strip_prefix(section)
            .is_some_and(|rest| rest.starts_with('_'))
    });
    section.map_or(Known::No, |(_, what)| Known::Unsupported(what))
}

/// Whether Kubernetes set the variable because of a service whose name begins with `howdah` or `patroni`:
/// `HOWDAH_SERVICE_HOST`, `HOWDAH_REPLICA_PORT=tcp://…`, `HOWDAH_PORT_5432_TCP_ADDR` …
fn is_service_link(suffix: &str, value: &str) -> bool {
    let part = |needle: &str| suffix == needle || suffix.ends_with(&format!("_{needle}"));
    let link = value.starts_with("tcp://") || value.starts_with("udp://");
    let numbered = suffix.rsplit_once("PORT_").is_some_and(|(_, rest)| {
        let mut pieces = rest.split('_');
        let number = pieces
            .next()
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        number && matches!(pieces.next(), Some("TCP" | "UDP" | "SCTP"))
    });
    part("SERVICE_HOST")
        || part("SERVICE_PORT")
        || suffix.contains("SERVICE_PORT_")
        || (part("PORT") && link)
        || numbered
}

/// The nearest of some names, if it is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let tolerance = (name.chars().count() / 4).clamp(1, 4);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= tolerance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The name that was meant by an unknown variable.
pub(super) fn meant(name: &str) -> Option<String> {
    let suffix = name.strip_prefix(OURS).or_else(|| name.strip_prefix(PATRONI))?;
    let (stem, file) = suffix
        .strip_suffix("_FILE")
        .map_or((suffix, ""), |stem| (stem, "_FILE"));
    let short = OTHER_NAMES.iter().find(|(other, ..)| *other == stem);
    let found = short
        .map(|(_, suffix, ..)| *suffix)
        .or_else(|| nearest(stem, vars::all().map(|var| var.suffix)));
    found.map(|suffix| format!("{OURS}{suffix}{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_name_leads_to_a_setting() {
        for (name, suffix, ..) in OTHER_NAMES {
            assert!(vars::by_suffix(suffix).is_some(), "{name} -> {suffix}");
        }
    }

    #[test]
    fn variables_are_told_apart_by_name() {
        for (name, value, expected) in [
            ("HOWDAH_TTL", "", Known::Yes),
            ("PATRONI_TTL", "", Known::Yes),
            ("HOWDAH_SUPERUSER_PASSWORD_FILE", "", Known::Yes),
            ("HOWDAH_ETCD_HOSTS", "", Known::Yes),
            ("PATRONI_ETCD_HOST", "", Known::Yes),
            ("PATRONI_LOGLEVEL", "", Known::Yes),
            ("HOWDAH_ADOPT", "", Known::Yes),
            ("PATRONI_ADOPT", "", Known::No),
            ("HOWDAH_TTTL", "", Known::No),
            ("HOWDAH_CONSUL_HOST", "", Known::Yes),
            ("HOWDAH_ZOOKEEPER_HOST", "", Known::No),
            ("HOWDAH_RAFT_SELF_ADDR", "", Known::Unsupported("Raft as DCS is")),
            ("PATRONI_KUBERNETES_LABELS", "", Known::Yes),
            ("HOWDAH_KUBERNETES_LABLES", "", Known::No),
            ("HOWDAH_CONSULTANT", "", Known::No),
            ("HOME", "/", Known::Yes),
        ] {
            assert_eq!(classify(name, value), expected, "{name}");
        }
    }

    #[test]
    fn links_to_a_kubernetes_service_named_like_us_are_nobodys_mistake() {
        for (name, value) in [
            ("HOWDAH_SERVICE_HOST", "10.0.0.1"),
            ("HOWDAH_SERVICE_PORT", "5432"),
            ("HOWDAH_SERVICE_PORT_POSTGRESQL", "5432"),
            ("HOWDAH_PORT", "tcp://10.0.0.1:5432"),
            ("HOWDAH_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
            ("HOWDAH_PORT_5432_TCP_ADDR", "10.0.0.1"),
            ("HOWDAH_REPLICA_PORT_5432_TCP_PROTO", "tcp"),
            ("HOWDAH_REPLICA_SERVICE_HOST", "10.0.0.1"),
        ] {
            assert_eq!(classify(name, value), Known::Yes, "{name}");
        }
        assert_eq!(classify("HOWDAH_PORT", "5432"), Known::No);
    }

    #[test]
    fn the_nearest_name_is_suggested_if_it_is_near() {
        for (name, expected) in [
            ("HOWDAH_TTTL", Some("HOWDAH_TTL")),
            ("HOWDAH_LOPO_WAIT", Some("HOWDAH_LOOP_WAIT")),
            ("HOWDAH_RESTAPI_LISTN", Some("HOWDAH_RESTAPI_LISTEN")),
            (
                "HOWDAH_SUPERUSER_PASWORD_FILE",
                Some("HOWDAH_SUPERUSER_PASSWORD_FILE"),
            ),
            ("HOWDAH_POSTGRES_PASSWORD", Some("HOWDAH_SUPERUSER_PASSWORD")),
            ("HOWDAH_PGDATA", Some("HOWDAH_POSTGRESQL_DATA_DIR")),
            ("PATRONI_SCOP", Some("HOWDAH_SCOPE")),
            ("HOWDAH_FROBNICATE", None),
        ] {
            assert_eq!(meant(name).as_deref(), expected, "{name}");
        }
    }
}
