//! The three roles: names, passwords, and where the passwords nobody gave come from.

use std::collections::BTreeMap;

use super::Builder;
use crate::config::{
    secret::Secret,
    types::{Authentication, Login},
};

const ROOT: &str = "postgresql.authentication";

/// libpq keywords that are passed on as they are; `sslpassword` is apart because it is secret.
const OPTIONS: &[&str] = &[
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

impl Builder {
    pub(super) fn authentication(&mut self) -> Authentication {
        let password = format!("{ROOT}.superuser.password");
        if self.all.settings.text(&password).is_none() && !self.is_voter() {
            self.missing(&password, "there is no default password for the superuser");
        }
        let superuser = self.login("superuser", None);
        let replication = self.login("replication", Some(&superuser));
        let rewind = self.login("rewind", Some(&superuser));
        self.one_password_each(&[
            ("superuser", &superuser),
            ("replication", &replication),
            ("rewind", &rewind),
        ]);
        Authentication {
            superuser,
            replication,
            rewind,
        }
    }

    fn login(&mut self, role: &str, superuser: Option<&Login>) -> Login {
        let at = |key: &str| format!("{ROOT}.{role}.{key}");
        let username = self.text(&at("username"));
        let password = match (self.all.settings.text(&at("password")), superuser) {
            (Some(password), _) => Secret::new(password),
            (None, None) => Secret::new(""),
            (None, Some(superuser)) => {
                let password = if superuser.username == username {
                    superuser.password.clone()
                } else {
                    superuser.password.derive(&username)
                };
                self.all.settings.set_default(&at("password"), password.reveal());
                password
            }
        };
        let options: BTreeMap<String, String> = OPTIONS
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), self.all.settings.text(&at(key))?)))
            .collect();
        let sslpassword = self.all.settings.text(&at("sslpassword")).map(Secret::new);
        Login {
            username,
            password,
            sslpassword,
            options,
        }
    }

    /// A role has one password: two logins of one name must agree.
    fn one_password_each(&mut self, logins: &[(&str, &Login)]) {
        for (i, (role, login)) in logins.iter().enumerate() {
            for (other_role, other) in &logins[..i] {
                if login.username == other.username && login.password != other.password {
                    let paths = [
                        format!("{ROOT}.{other_role}.password"),
                        format!("{ROOT}.{role}.password"),
                    ];
                    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                    self.inconsistent(
                        &paths,
                        &format!("both are for the role {:?}, but differ", login.username),
                    );
                }
            }
        }
    }
}
