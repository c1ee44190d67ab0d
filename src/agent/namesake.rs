//! Two processes must not run under one name: each would take the other's lock for its own.
//!
//! Before the first word of ours goes into the store, the member key that carries our name is looked at: if the REST
//! API it names answers for a member of our name, that member lives, and we are the one too many. An agent that goes
//! on with the lease of its predecessor needs no such proof: the predecessor held it, and init started only us.
//! Not here: a namesake that takes the lock later (see [`super::lease`]).

use std::time::Duration;

use tracing::{error, info};

use super::Agent;
use crate::{
    client::{Answer, Client},
    exit::Exit,
    model::{Cluster, MemberName},
};

/// Long enough for a busy member, short enough for a start after a crash, when nobody answers.
const LIMIT: Duration = Duration::from_secs(3);

/// What is known about another process of our name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namesake {
    /// The member key is still to be looked at. `answered`: something spoke for us at our own address before we
    /// listened there.
    Unknown {
        /// See above.
        answered: bool,
    },
    /// There is none, or it is too late to ask.
    None,
}

impl Namesake {
    /// Asks our own address who is there; to be called before we listen on it.
    pub async fn before_listening(client: &Client, api_url: &str, me: &MemberName, scope: &str) -> Self {
        Self::Unknown {
            answered: speaks_for(client, api_url, me, scope).await,
        }
    }
}

impl Agent {
    /// Looks for a namesake in the first view of the cluster; the status to end with if there is one.
    pub(super) async fn namesake_in(&mut self, cluster: &Cluster) -> Option<Exit> {
        let Namesake::Unknown { answered } = self.namesake else {
            return None;
        };
        let (me, scope) = (&self.identity.member, &self.identity.scope);
        let address = cluster.member(me).map(|member| member.data.api_url.clone());
        let lives = match &address {
            None => false,
            Some(address) if *address == self.identity.api_url => answered,
            Some(address) => speaks_for(&self.http, address, me, scope).await,
        };
        if !lives {
            self.namesake = Namesake::None;
            return None;
        }
        error!(
            member = %me,
            address,
            "another running member has the name '{me}': it answers at {}. Nothing was changed. Give every member a \
             name of its own (HOWDAH_NAME), or stop the other one",
            address.as_deref().unwrap_or_default()
        );
        Some(Exit::DuplicateName)
    }
}

/// Whether a member of our name and cluster answers there: addresses are given to others in time, and whatever else
/// answers is no proof of a namesake. (One that says nothing cannot take the lock either: see `dcs::etcd::lock`.)
async fn speaks_for(client: &Client, api_url: &str, me: &MemberName, scope: &str) -> bool {
    match client.get(api_url, LIMIT).await {
        Ok(answer) => match who(&answer) {
            Some((name, cluster)) if name == me.0 && cluster == scope => true,
            other => {
                info!(
                    address = api_url,
                    ?other,
                    "our address of before is somebody else's now"
                );
                false
            }
        },
        Err(error) => {
            // A key that is there and an address that is silent: a member that died a moment ago.
            if !api_url.is_empty() {
                tracing::debug!(address = api_url, %error, "nobody answers under our name");
            }
            false
        }
    }
}

/// Name and cluster of the member that answered; `None`: what answered is no member, or does not say.
fn who(answer: &Answer) -> Option<(String, String)> {
    let json = answer.json()?;
    let who = json.get("patroni")?;
    Some((
        who.get("name")?.as_str()?.to_owned(),
        who.get("scope")?.as_str()?.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent::handle::fixtures::HEALTHY, api::test_server::server};

    fn said(text: &str) -> Option<(String, String)> {
        who(&Answer {
            status: 503,
            body: text.to_owned().into(),
        })
    }

    #[test]
    fn only_who_says_so_is_a_member() {
        let said_by = |name: &str, scope: &str| Some((name.to_owned(), scope.to_owned()));
        assert_eq!(
            said(r#"{"patroni":{"name":"pg1","scope":"demo"}}"#),
            said_by("pg1", "demo")
        );
        assert_eq!(
            said(r#"{"patroni":{"name":"pg2","scope":"x"}}"#),
            said_by("pg2", "x")
        );
        for unclear in ["", "nonsense", "{}", r#"{"patroni":{}}"#] {
            assert_eq!(said(unclear), None, "{unclear:?}");
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_there() {
        let client = Client::new(None);
        for nobody in ["", "http://127.0.0.1:1/patroni"] {
            assert!(
                !speaks_for(&client, nobody, &"pg1".into(), "demo").await,
                "{nobody:?}"
            );
        }
        let server = server(HEALTHY).await;
        let url = format!("http://{}/patroni", server.address);
        assert!(!speaks_for(&client, &url, &"nobody-of-that-name".into(), "demo").await);
    }
}
