//! The environment postgres and its children get: ours, without what is only for us and without secrets
//! (contract: environment §1).

use std::{ffi::OsString, sync::LazyLock};

use super::{other_names, vars};

const PREFIXES: &[&str] = &["HOWDAH_", "PATRONI_", "PGPASSWORD", "SPILO_CONFIGURATION"];
/// Kept from the server too, though other children (callbacks) may want them.
const SERVER_PREFIXES: &[&str] = &["KUBERNETES_"];
const NAMES: &[&str] = &["NOTIFY_SOCKET"];

static SECRETS: LazyLock<Vec<String>> = LazyLock::new(secret_names);

/// Whether a variable is this program's own setting or a secret by any of its names. No child gets those.
#[must_use]
pub fn is_private(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || SECRETS.iter().any(|secret| secret == name)
}

/// The variables to start postgres with. `PG_MALLOC_ARENA_MAX` becomes its `MALLOC_ARENA_MAX`.
#[must_use]
pub fn child_environment(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let vars: Vec<(OsString, OsString)> = vars.into_iter().collect();
    let arena = vars
        .iter()
        .find(|(name, _)| name == "PG_MALLOC_ARENA_MAX")
        .map(|(_, value)| value.clone());
    let mut kept: Vec<(OsString, OsString)> = vars
        .into_iter()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            let private = is_private(&name) || SERVER_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            let replaced = name == "PG_MALLOC_ARENA_MAX" || (name == "MALLOC_ARENA_MAX" && arena.is_some());
            !private && !replaced && !NAMES.contains(&&*name)
        })
        .collect();
    kept.extend(arena.map(|value| ("MALLOC_ARENA_MAX".into(), value)));
    kept
}

/// Every name of every secret, with its `_FILE` form.
fn secret_names() -> Vec<String> {
    let secrets = vars::all().filter(|var| var.kind.is_secret());
    secrets
        .flat_map(other_names::names)
        .flat_map(|other| [format!("{}_FILE", other.name), other.name])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_gets_no_secret_and_nothing_of_ours() {
        let given = [
            ("PATH", "/bin"),
            ("LANG", "C.UTF-8"),
            ("POSTGRES_USER", "app"),
            ("AWS_REGION", "eu"),
            ("HOWDAH_TTL", "30"),
            ("PATRONI_SCOPE", "x"),
            ("KUBERNETES_SERVICE_HOST", "x"),
            ("NOTIFY_SOCKET", "x"),
            ("POSTGRES_PASSWORD", "x"),
            ("POSTGRES_PASSWORD_FILE", "x"),
            ("PGPASSWORD", "x"),
            ("PGPASSWORD_SUPERUSER", "x"),
            ("ETCD3_PASSWORD", "x"),
            ("SPILO_CONFIGURATION", "x"),
            ("MALLOC_ARENA_MAX", "8"),
            ("PG_MALLOC_ARENA_MAX", "2"),
        ];
        let kept = child_environment(given.map(|(name, value)| (name.into(), value.into())));
        let kept: Vec<String> = kept
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
            .collect();
        assert_eq!(
            kept,
            [
                "PATH=/bin",
                "LANG=C.UTF-8",
                "POSTGRES_USER=app",
                "AWS_REGION=eu",
                "MALLOC_ARENA_MAX=2"
            ]
        );
    }

    #[test]
    fn the_arena_limit_stays_if_postgres_has_none_of_its_own() {
        let kept = child_environment([("MALLOC_ARENA_MAX".into(), "8".into())]);
        assert_eq!(kept.len(), 1);
    }
}
