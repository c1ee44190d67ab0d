//! `GET /why`: for every member, could it lead now, and if not, which rule says no. Every member is asked itself: it
//! judges by the same rules it would act by.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::{client::Client, model::MemberName};

/// A member that does not answer by then says nothing.
const WITHIN: Duration = Duration::from_secs(2);

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
        candidacy,
    }
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
