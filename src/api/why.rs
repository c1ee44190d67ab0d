//! `GET /why`: for every member, could it lead now, and if not, which rule says no; and who reads WAL from it. Every
//! member is asked itself: it judges by the same rules it would act by.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::{client::Client, clock::Boottime, model::MemberName};

/// A member that does not answer by then says nothing.
const WITHIN: Duration = Duration::from_secs(2);
/// Members are asked no more often than this, however many look.
const EVERY: Duration = Duration::from_secs(1);

/// What one member said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Word {
    /// Who.
    pub member: MemberName,
    /// `leads`, `could lead`, `could not lead`, or [`UNKNOWN`].
    pub candidacy: String,
    /// The rule.
    pub because: String,
    /// What the replication mode promises; said by the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promise: Option<String>,
    /// What would become of the primary without the DCS; said by the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_dcs: Option<String>,
    /// What the last attempt to stream or to be a primary said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What of the cluster's configuration it does not use as it was written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<String>,
    /// Names under which others stream from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<String>,
}

/// It did not say.
pub const UNKNOWN: &str = "unknown";

/// Reads a member's status, or says why there is none.
#[must_use]
pub fn word(member: &MemberName, status: Result<&Value, &str>) -> Word {
    let unknown = |because: String| Word {
        member: member.clone(),
        candidacy: UNKNOWN.to_owned(),
        because,
        promise: None,
        without_dcs: None,
        failure: None,
        config: Vec::new(),
        followers: followers(status.ok()),
    };
    let status = match status {
        Ok(status) => status,
        Err(reason) => return unknown(reason.to_owned()),
    };
    let text = |field: &str| status["howdah"][field].as_str().map(str::to_owned);
    let Some(candidacy) = text("candidacy") else {
        return unknown("it does not say; a member that runs Patroni?".to_owned());
    };
    let leads = candidacy == "leads";
    Word {
        member: member.clone(),
        because: text("because").unwrap_or_default(),
        promise: text("promise").filter(|_| leads),
        without_dcs: text("without_dcs").filter(|_| leads),
        failure: text("failure"),
        config: texts(&status["howdah"]["config"]),
        followers: followers(Some(status)),
        candidacy,
    }
}

fn texts(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Copies and other readers of WAL have names of their own.
fn followers(status: Option<&Value>) -> Vec<String> {
    let senders = status.and_then(|status| status["replication"].as_array());
    let streaming = senders
        .into_iter()
        .flatten()
        .filter(|sender| sender["state"] == "streaming");
    let names = streaming.filter_map(|sender| sender["application_name"].as_str());
    names.map(str::to_owned).collect()
}

/// Asks all of them at once.
pub async fn all(client: &Client, members: &[(MemberName, String)]) -> Vec<Word> {
    let ask = members.iter().map(|(name, url)| async move {
        let status = match client.get(url, WITHIN).await {
            Ok(answer) => answer
                .json()
                .ok_or_else(|| format!("{url} answered {} and no JSON", answer.status)),
            Err(error) => Err(error.to_string()),
        };
        word(name, status.as_ref().map_err(String::as_str))
    });
    futures::future::join_all(ask).await
}

/// What was said last. Everybody may look, so those who look at once are one question to each member.
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<Option<(Boottime, Vec<Word>)>>);

impl Latest {
    /// The last words, or those that `ask` gets.
    pub(super) async fn or_ask(&self, ask: impl Future<Output = Vec<Word>>) -> Vec<Word> {
        // Held while asking, which is bounded: whoever waits here takes the answer along.
        let mut last = self.0.lock().await;
        if let Some((at, words)) = &*last
            && Boottime::now().since(*at) < EVERY
        {
            return words.clone();
        }
        let words = ask.await;
        *last = Some((Boottime::now(), words.clone()));
        words
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_says_who_streams_from_it_and_what_it_does_not_use() {
        let status = json!({
            "replication": [
                {"application_name": "n2", "state": "streaming"},
                {"application_name": "pg_basebackup", "state": "backup"},
                {"application_name": null, "state": "streaming"},
            ],
            "howdah": {"candidacy": "leads", "because": "it holds the lock", "failure": "no route",
                "config": ["ttl: 1 is below 3", 7]},
        });
        let said = word(&"n1".into(), Ok(&status));
        assert_eq!(said.followers, ["n2"]);
        assert_eq!(said.config, ["ttl: 1 is below 3"]);
        assert_eq!(said.failure.as_deref(), Some("no route"));
        let patroni = json!({"replication": [{"application_name": "n3", "state": "streaming"}]});
        let said = word(&"n1".into(), Ok(&patroni));
        assert_eq!(
            (said.candidacy.as_str(), said.followers.as_slice()),
            (UNKNOWN, &["n3".to_owned()][..])
        );
    }
}
