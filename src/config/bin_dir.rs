//! Where PostgreSQL's programs may be. Pure: the caller lists folders and looks whether `postgres` is there.

use std::path::{Path, PathBuf};

/// Debian's folder with one sub-folder per installed major version.
pub const DEBIAN_ROOT: &str = "/usr/lib/postgresql";

/// The folders to look for `postgres` in, best first: the configured one alone if there is one; else the major
/// version of an existing data directory, the folders of `PATH`, and then the newest of Debian's.
///
/// `installed` is the listing of [`DEBIAN_ROOT`] (names that are not a major version are left out), `data_major`
/// the content of `PG_VERSION`: another major version cannot open that data, so it goes first.
#[must_use]
pub fn candidates<'a>(
    configured: Option<&Path>,
    path: Option<&str>,
    installed: impl IntoIterator<Item = &'a str>,
    data_major: Option<u32>,
) -> Vec<PathBuf> {
    if let Some(configured) = configured {
        return vec![configured.to_owned()];
    }
    let mut majors: Vec<u32> = installed
        .into_iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    let debian = |major: &u32| Path::new(DEBIAN_ROOT).join(major.to_string()).join("bin");
    let of_data = majors.iter().filter(|major| Some(**major) == data_major);
    let of_path = path
        .unwrap_or_default()
        .split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(PathBuf::from);
    let mut folders: Vec<PathBuf> = of_data.map(debian).collect();
    folders.extend(of_path);
    folders.extend(majors.iter().map(debian));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(folders: Vec<PathBuf>) -> Vec<String> {
        folders
            .into_iter()
            .map(|f| f.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn path_comes_before_the_newest_installed_version() {
        assert_eq!(
            texts(candidates(
                None,
                Some("/usr/bin:rel:/bin"),
                ["9.6", "15", "18", "17"],
                None
            )),
            [
                "/usr/bin",
                "/bin",
                "/usr/lib/postgresql/18/bin",
                "/usr/lib/postgresql/17/bin",
                "/usr/lib/postgresql/15/bin"
            ]
        );
    }

    #[test]
    fn existing_data_decides_the_version() {
        assert_eq!(
            texts(candidates(None, Some("/usr/bin"), ["15", "18"], Some(15)))[0],
            "/usr/lib/postgresql/15/bin"
        );
    }

    #[test]
    fn a_configured_folder_is_the_only_one() {
        let configured = Path::new("/opt/pg/bin");
        assert_eq!(
            texts(candidates(Some(configured), Some("/usr/bin"), ["18"], Some(18))),
            ["/opt/pg/bin"]
        );
    }
}
